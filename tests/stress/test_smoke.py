"""The regression guard compares ratios and tells a disaster from noise. Nothing is measured here."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from occamdb.stress.bench import smoke
from occamdb.stress.bench.catalogue import select_rows


def test_only_large_losses_count() -> None:
    baseline = {"reads": 1.0, "scan": 2.0, "cross": 0.1}
    assert smoke.compare({"reads": 0.61, "scan": 1.21, "cross": 0.5}, baseline) == []
    assert smoke.compare({"reads": 0.59, "scan": 1.19, "cross": 0.1}, baseline) == ["reads", "scan"]
    assert smoke.compare({"reads": 1.0, "scan": 2.0}, baseline) == ["cross"]


def test_a_loss_is_measured_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def measured(names: Sequence[str]) -> dict[str, float]:
        asked.append(list(names))
        return dict.fromkeys(names, 0.5 if len(asked) == 1 else 0.9)

    monkeypatch.setattr(smoke, "measure", measured)
    assert smoke.guard({"reads": 1.0, "scan": 0.5}) == 0
    assert asked == [["reads", "scan"], ["reads"]]
    asked.clear()
    monkeypatch.setattr(smoke, "measure", lambda names: dict.fromkeys(names, 0.1))
    assert smoke.guard({"reads": 1.0}) == 1
    assert "LOST" in capsys.readouterr().out


def test_the_committed_baseline_names_rows() -> None:
    baseline = json.loads(smoke.BASELINE.read_text())
    assert baseline["peer"] == smoke.PEER
    assert {row.name for row in select_rows(list(baseline["ratios"]))} == set(smoke.ROWS)
    assert all(ratio > 0 for ratio in baseline["ratios"].values())
