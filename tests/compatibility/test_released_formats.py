"""Databases that released versions wrote open unchanged.

`formats/<version>.tar.xz` holds two directories made by that version. `stopped` was stopped cleanly. The coordinator of
`killed` was killed with commits behind its last checkpoint. `formats/<version>.json` says what each of them holds.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import Database, RunId
from occamdb.engine.log.check import check
from occamdb.tools import primitive_audit
from tests.conftest import stop_coordinator

FORMATS = Path(__file__).parent / "formats"
RELEASES = sorted(path.name.removesuffix(".tar.xz") for path in FORMATS.glob("*.tar.xz"))


@pytest.fixture(
    params=[(release, kind) for release in RELEASES for kind in ("stopped", "killed")], ids="-".join
)
def released(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A copy of a released version's directory, and what is in it."""
    release, kind = request.param
    with tarfile.open(FORMATS / f"{release}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected = json.loads((FORMATS / f"{release}.json").read_text())[kind]
    yield tmp_path / kind, expected
    stop_coordinator(tmp_path / kind)


def read_all(db: Database, expected: dict[str, Any]) -> dict[str, Any]:
    """What the database holds, in the form of the expectation."""
    run = RunId(expected["run"])
    value = db.kv.get(run, "key/011")
    value["list"][4] = value["list"][4].hex()
    cell = db.cells.read(run, "cell")
    assert cell is not None
    return {
        "run": expected["run"],
        "child": expected["child"],
        "gone": expected["gone"],
        "root": expected["root"],
        "kv": [
            [key.decode() if key < b"\x80" else {"$hex": key.hex()}, row.version]
            for key, row in db.kv.scan(run, raw=True)
        ],
        "counter": db.kv.get(run, "counter"),
        "key/011": value,
        "events": [
            [event.sequence, event.event_type, event.payload, event.hash.hex()]
            for event in db.events.read_range(run, 0, 100)
        ],
        "cell": [cell.value, cell.version],
        "tree": db.traces.get_tree(run, expected["root"]).size,
        "custom": [trace.id for trace in db.traces.query_by_tag(run, "t1")],
        "runs": sorted([found.name, found.status.value] for found in db.runs.list_runs()),
        "children": [str(found.run_id) for found in db.runs.get_child_runs(run)],
        "other": db.namespace("tenant", "app", "agent").kv.get(run, "there"),
    }


def test_it_opens_with_every_value_version_and_hash(released: tuple[Path, dict[str, Any]]) -> None:
    path, expected = released
    assert check(path, rebuild=True).sound
    assert primitive_audit.audit(path).sound
    with occamdb.open(path) as db:
        assert read_all(db, expected) == expected
        assert db.events.verify_chain(RunId(expected["run"])).is_valid
        assert not list(db.kv.keys(RunId(expected["gone"])))


def test_it_takes_commits_and_opens_again(released: tuple[Path, dict[str, Any]]) -> None:
    path, expected = released
    run = RunId(expected["run"])
    newest = max(version for _, version in expected["kv"])
    with occamdb.open(path) as db:
        assert db.kv.put(run, "new", 1) > newest
        db.events.append(run, "new", {})
    stop_coordinator(path)
    with occamdb.open(path) as db:
        assert db.kv.get(run, "new") == 1
        assert db.events.len(run) == len(expected["events"]) + 1
        assert db.events.verify_chain(run).is_valid
        db.kv.delete(run, "new")
        found = read_all(db, expected)
        assert found.pop("events")[:-1] == expected["events"]
        assert found == {name: value for name, value in expected.items() if name != "events"}
