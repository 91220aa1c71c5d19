"""The checker catches every class of anomaly in hand-written histories and accepts what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from occamdb.stress.checker import check_history
from occamdb.stress.history import HistoryFormatError
from tests.support.histories import LIST_APPEND, REGISTER, Txn, good, t, verdict, write

BAD_LISTS: dict[str, list[Txn]] = {
    "G1a": [t("a x 1", 10, 20, "conflict"), t("r x 1", 30, 40)],
    "G1b": [t("a x 1; a x 2", 10, 50), t("r x 1", 20, 60), t("r x 1,2", 70, 80)],
    "garbage-read": [t("a x 1", 10, 20), t("r x 1,9", 30, 40)],
    "internal": [t("a x 1; r x -", 10, 20), t("r x 1", 30, 40)],
    "duplicated-write": [t("a x 1", 10, 20), t("r x 1,1", 30, 40)],
    "vanished-write": [t("a x 1", 10, 20), t("a x 2", 10, 20), t("r x 2", 30, 40)],
    "incompatible-order": [
        t("a x 1", 10, 90),
        t("a x 2", 10, 90),
        t("r x 1,2", 20, 90),
        t("r x 2,1", 20, 90),
    ],
    "lost-update": [t("r x -; a x 1", 10, 50), t("r x -; a x 2", 10, 50), t("r x 1,2", 60, 70)],
    "duplicate-value": [t("a x 1", 10, 20), t("a x 1", 30, 40)],
    "G0": [t("a x 1; a y 1", 10, 50), t("a x 2; a y 2", 10, 50), t("r x 1,2; r y 2,1", 60, 70)],
    "G1c": [t("a x 1; r y 2", 10, 50), t("a y 2; r x 1", 10, 50)],
    "G-single": [t("a x 1; a y 1", 10, 50), t("r x -; r y 1", 10, 50), t("r x 1", 60, 70)],
    "G2": [t("r x -; a y 1", 10, 50), t("r y -; a x 1", 10, 50), t("r x 1; r y 1", 60, 70)],
    "G0-realtime": [t("a x 1", 10, 20), t("a x 2", 30, 40), t("r x 2,1", 50, 60)],
    "G1c-realtime": [t("r x 1", 10, 20), t("a x 1", 30, 40)],
    "G-single-realtime": [t("a x 1", 10, 20), t("r x -", 30, 40), t("r x 1", 30, 40)],
    "G2-realtime": [
        t("r x -; r z -", 100, 150),
        t("a x 1; r y -", 20, 140),
        t("a y 1", 30, 40),
        t("r x 1; r y 1", 160, 170),
    ],
}

BAD_REGISTERS: dict[str, list[Txn]] = {
    "G1a": [t("w x 1", 10, 20, "conflict"), t("r x 1", 30, 40)],
    "G1b": [t("w x 1; w x 2", 10, 50), t("r x 1", 20, 60)],
    "garbage-read": [t("r x 9", 30, 40)],
    "internal": [t("w x 1; r x 2", 10, 20), t("w x 2", 10, 20)],
    "lost-update": [t("r x -; w x 1", 10, 50), t("r x -; w x 2", 10, 50)],
    "vanished-write": [t("r x -; w x 1", 10, 20), t("r x -", 30, 40)],
    "duplicate-value": [t("w x 1", 10, 20), t("w x 1", 30, 40)],
    "G0": [
        t("r x -; w x 1; r y 2; w y 1", 10, 50),
        t("r x 1; w x 2; r y -; w y 2", 10, 50),
    ],
    "G1c": [t("w x 1; r y 2", 10, 50), t("w y 2; r x 1", 10, 50)],
    "G-single": [t("w x 1; w y 1", 10, 50), t("r x -; r y 1", 10, 50)],
    "G2": [t("r x -; w y 1", 10, 50), t("r y -; w x 1", 10, 50)],
    "G1c-realtime": [t("r x 1", 10, 20), t("w x 1", 30, 40)],
    "G-single-realtime": [t("w x 1", 10, 20), t("w x 2", 30, 40), t("r x 1", 50, 60)],
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_catches_in_list_append(tmp_path: Path, name: str) -> None:
    report = verdict(tmp_path, LIST_APPEND, BAD_LISTS[name])
    assert name in report.anomalies, report.text()
    assert not report.valid
    assert "T" in report.anomalies[name].example or name == "duplicate-value"


@pytest.mark.parametrize("name", BAD_REGISTERS)
def test_catches_in_registers(tmp_path: Path, name: str) -> None:
    report = verdict(tmp_path, REGISTER, BAD_REGISTERS[name])
    assert name in report.anomalies, report.text()
    assert not report.valid


def test_duplicate_and_disordered_versions(tmp_path: Path) -> None:
    one, two, three = t("a x 1", 10, 20), t("a y 1", 30, 40), t("a z 1", 50, 60)
    one.version, two.version, three.version = 5, 5, 4
    report = verdict(tmp_path, LIST_APPEND, [one, two, three])
    assert {"duplicate-version", "version-order"} <= set(report.anomalies)


def test_levels_differ(tmp_path: Path) -> None:
    skew = write(tmp_path / "skew", LIST_APPEND, BAD_LISTS["G2"])
    stale = write(tmp_path / "stale", LIST_APPEND, BAD_LISTS["G-single-realtime"])
    torn = write(tmp_path / "torn", LIST_APPEND, BAD_LISTS["G-single"])
    assert [check_history(skew, level).valid for level in ("snapshot", "serializable")] == [True, False]
    assert [check_history(stale, level).valid for level in ("snapshot", "serializable")] == [False, True]
    assert [check_history(torn, level).valid for level in ("snapshot", "serializable")] == [False, False]


def test_smallest_example_is_chosen(tmp_path: Path) -> None:
    """A cycle of four and a cycle of two in one component: the two are shown."""
    long = [t(f"r k{i} -; a k{(i + 1) % 4} {i + 1}", 10, 50) for i in range(4)]
    short = [t("r x -; a k0 50; a y 1", 10, 50), t("r y -; a x 1; r k0 4,50", 10, 50)]
    report = verdict(tmp_path, LIST_APPEND, [*long, *short])
    assert report.anomalies["G2"].example_size == 2, report.text()


def test_unknown_outcomes_may_have_happened_or_not(tmp_path: Path) -> None:
    seen = [t("a x 1", 10, 0, "unknown"), t("r x 1", 30, 40)]
    unseen = [t("a x 1", 10, 0, "unknown"), t("r x -", 30, 40)]
    late = [t("a x 1", 10, 0, "unknown"), t("r x -", 30, 40), t("r x 1", 50, 60)]
    for number, txns in enumerate((seen, unseen, late)):
        assert verdict(tmp_path / str(number), LIST_APPEND, txns).valid


@pytest.mark.parametrize("kind", [LIST_APPEND, REGISTER])
@pytest.mark.parametrize("seed", range(4))
def test_accepts_generated_serializable_histories(tmp_path: Path, kind: str, seed: int) -> None:
    report = verdict(tmp_path, kind, good(kind, 400, seed))
    assert report.valid, report.text()
    assert report.anomalies == {}
    assert report.transactions > 150 and report.edges > 300


def test_deep_chain_needs_no_deep_stack(tmp_path: Path) -> None:
    txns = [
        t(f"r x {number or '-'}; w x {number + 1}", 10 * number, 10 * number + 5) for number in range(20_000)
    ]
    assert verdict(tmp_path, REGISTER, txns).valid
    txns.append(t("r x -; w x 90000", 10, 15))
    assert not verdict(tmp_path / "bad", REGISTER, txns).valid


def test_refuses_what_is_no_history(tmp_path: Path) -> None:
    (tmp_path / "a.hist").write_bytes(b"hello")
    with pytest.raises(HistoryFormatError, match=r"a\.hist"):
        check_history(tmp_path)
    with pytest.raises(ValueError, match="read-committed"):
        check_history(tmp_path, "read-committed")
    mixed = write(tmp_path / "mixed", LIST_APPEND, [t("a x 1", 1, 2)])
    write(tmp_path / "other", REGISTER, [t("w x 1", 1, 2)])
    (tmp_path / "other" / "1.hist").rename(mixed / "2.hist")
    with pytest.raises(HistoryFormatError, match="one kind"):
        check_history(mixed)
