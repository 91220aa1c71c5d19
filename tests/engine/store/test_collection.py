"""What the collector frees and what it keeps: each pin holds back exactly what it can see."""

from __future__ import annotations

import random

import pytest

from tests.support.store_model import Model, make_store, settle


def test_a_long_snapshot_holds_one_record_a_key_however_many_overwrites() -> None:
    writer, reader = make_store()
    keys = [b"key%03d" % i for i in range(50)]
    for key in keys:
        writer.put(key, b"first", 1)
    writer.publish(1)
    pin = 1
    for version in range(2, 402):
        for key in keys:
            writer.put(key, b"value %d" % version, version)
        writer.publish(version)
        # A short pin at the newest version comes and goes with every round.
        writer.collect([pin, version], horizon=version)
        assert writer.stats()["records"] <= 3 * len(keys)
    settle(writer, [pin])
    assert writer.stats()["records"] == 2 * len(keys)
    assert writer.held_by(pin) == writer.stats()["superseded_bytes"] == len(keys) * 64
    assert [row[1] for row in reader.scan(pin)] == [b"first"] * len(keys)
    settle(writer)
    assert writer.stats()["records"] == len(keys)
    assert writer.held_by(pin) == 0
    writer.check()


def test_records_pass_from_pin_to_pin_and_each_is_charged_to_one() -> None:
    writer, reader = make_store()
    for version in range(1, 11):
        writer.put(b"k", b"%d" % version, version)
        writer.publish(version)
    # A record of version 10 would be seen by 10..19: three pins inside one interval.
    for version in range(11, 20):
        writer.publish(version)
    writer.put(b"k", b"20", 20)
    writer.publish(20)
    settle(writer, [3, 12, 15, 19])
    assert writer.held_by(3) == writer.held_by(12) == 64
    assert writer.held_by(15) == writer.held_by(19) == 0
    settle(writer, [3, 15, 19])
    assert (writer.held_by(12), writer.held_by(15)) == (0, 64)
    settle(writer, [19])
    assert (writer.held_by(3), writer.held_by(15), writer.held_by(19)) == (0, 0, 64)
    found = reader.get(b"k", 19)
    assert found is not None
    assert found[:2] == (10, b"10")
    settle(writer)
    assert writer.stats()["records"] == 1


def test_a_small_budget_gets_there_in_more_rounds() -> None:
    writer, _ = make_store()
    for version in range(1, 501):
        writer.put(b"hot", b"x", version)
        writer.publish(version)
    pins = [500]
    writer.collect([1, *pins], horizon=1, budget=0)
    rounds = 0
    while writer.stats()["superseded"]:
        before = writer.stats()["superseded"]
        writer.collect(pins, horizon=500, budget=7)
        assert before - writer.stats()["superseded"] <= 7
        writer.check()
        rounds += 1
    assert rounds == -(-499 // 7)


@pytest.mark.parametrize("budget", [0, 1, 512])
def test_no_budget_is_too_small_for_a_steady_load(budget: int) -> None:
    """A round does at least as much as was added since the last one, so nothing piles up."""
    writer, _ = make_store(16 << 20)
    for version in range(1, 400):
        for i in range(40):
            key = b"%d" % ((version * 13 + i * 7) % 900)
            if i % 5 == 0:
                writer.delete(key, version)
            else:
                writer.put(key, b"x" * 100, version)
            writer.ensure(b"failed %d" % (version * 40 + i))
        writer.publish(version)
        writer.collect([version], horizon=version, budget=budget)
        stats = writer.stats()
        assert stats["superseded"] <= 40
        assert stats["tombstones"] <= 80
        assert stats["nodes"] <= 900
    writer.check()


def test_nothing_above_the_horizon_goes() -> None:
    writer, _ = make_store()
    for version in range(1, 11):
        writer.put(b"k", b"x", version)
        writer.publish(version)
    settle(writer, horizon=4)
    # Replaced at 2, 3 and 4: gone. A reader that takes version 4 just now may still need the record of version 4.
    assert writer.stats()["records"] == 10 - 3


def test_two_writes_of_one_version_leave_one_record() -> None:
    writer, reader = make_store()
    writer.put(b"k", b"old", 1)
    writer.publish(1)
    writer.delete(b"k", 2)
    writer.put(b"k", b"new", 2)
    writer.publish(2)
    assert reader.get(b"k", 1) == (1, b"old", 0, 0)
    settle(writer, [1])
    assert writer.stats()["records"] == 2
    assert reader.get(b"k", 2) == (2, b"new", 0, 0)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_deleted_key_goes_with_its_node_when_nobody_is_older(pinned: bool) -> None:
    writer, reader = make_store()
    writer.put(b"k", b"x", 1)
    writer.publish(1)
    writer.delete(b"k", 2)
    writer.publish(2)
    settle(writer, [1] if pinned else [])
    assert writer.stats()["nodes"] == (1 if pinned else 0)
    assert writer.stats()["tombstone_horizon"] == (0 if pinned else 2)
    assert (reader.get(b"k", 1) is not None) == pinned
    settle(writer)
    stats = writer.stats()
    assert (stats["nodes"], stats["records"], stats["tombstones"], stats["tombstone_horizon"]) == (0, 0, 0, 2)
    assert writer.nodes_from(b"") == []
    writer.check()


def test_a_tombstone_alone_waits_for_pins_older_than_itself() -> None:
    """A transaction that began at 1 must still find that the key was written at 3."""
    writer, _ = make_store()
    writer.publish(1)
    writer.put(b"k", b"x", 2)
    writer.publish(2)
    writer.delete(b"k", 3)
    writer.publish(3)
    settle(writer, [1])
    assert writer.newest(b"k") == (3, 1, b"")
    assert writer.stats()["records"] == 1
    settle(writer, [3])
    assert writer.newest(b"k") is None


@pytest.mark.parametrize(("pins", "horizon"), [([2], 3), ([], 2)])
def test_a_tombstone_stays_for_a_snapshot_just_before_it(pins: list[int], horizon: int) -> None:
    """Written and deleted by one commit: nothing older is left, and still the write must be found."""
    writer, _ = make_store()
    writer.publish(2)
    writer.put(b"k", b"x", 3)
    writer.delete(b"k", 3)
    writer.publish(3)
    writer.collect(pins, horizon=3 if pins else horizon)
    writer.collect(pins, horizon=horizon)
    assert writer.newest(b"k") == (3, 1, b"")
    assert writer.stats()["tombstone_horizon"] == 0
    settle(writer)
    assert writer.stats()["nodes"] == 0


def test_delete_and_rewrite_in_any_state_of_the_tombstone() -> None:
    writer, reader = make_store()
    version = 0
    for collect_between in (False, True, False, True, True):
        for action in ("put", "delete", "put", "delete", "undone put", "undone delete", "put"):
            version += 1
            if action.endswith("put"):
                writer.put(b"k", b"%d" % version, version)
            else:
                writer.delete(b"k", version)
            if action.startswith("undone"):
                writer.undo()
            writer.publish(version)
            if collect_between:
                settle(writer)
            writer.check()
            present = action in ("put", "undone delete") and action != "undone delete"
            assert (reader.get(b"k", version) is not None) == present
    settle(writer)
    assert writer.stats()["records"] == 1


def test_failed_commits_leave_no_nodes() -> None:
    writer, reader = make_store()
    for i in range(100):
        writer.ensure(b"never %d" % i)
        writer.put(b"undone %d" % i, b"x", 1)
    writer.undo()
    assert reader.scan(1) == []
    assert writer.stats()["nodes"] == 200
    settle(writer)
    stats = writer.stats()
    assert (stats["nodes"], stats["records"], stats["node_bytes"], stats["record_bytes"]) == (0, 0, 0, 0)
    writer.check()


def test_the_quarantine_waits_between_flips_but_not_beyond_its_bytes() -> None:
    writer, _ = make_store(64 << 20)
    flips = writer.stats()["flips"]
    for version in range(1, 200):
        writer.put(b"k", bytes(200_000), version)
        writer.publish(version)
        writer.collect(horizon=version)
        assert writer.stats()["quarantine_bytes"] < (4 << 20) + 500_000
    assert writer.stats()["flips"] > flips


@pytest.mark.parametrize("seed", range(4))
def test_long_random_histories(seed: int) -> None:
    """Thousands of keys and versions: bucket splits, doublings, many pins, deletes, undo, in one run."""
    chance = random.Random(seed)
    writer, reader = make_store(16 << 20)
    model = Model()
    pins: list[int] = []
    for version in range(1, 1200):
        for _ in range(chance.randrange(1, 20)):
            key = b"k%05d" % int(4000 * chance.random() ** (1 + seed))
            value = None if chance.random() < 0.3 else chance.randbytes(int(2 ** chance.uniform(0, 11)))
            if chance.random() < 0.1:
                # A transaction that is taken back: installed, then undone.
                writer.put(key, b"never seen", version)
                writer.undo(1)
                continue
            if value is None:
                writer.delete(key, version)
            else:
                writer.put(key, value, version)
            model.write(key, value, version)
        writer.publish(version)
        if chance.random() < 0.05:
            pins.append(version)
        if pins and chance.random() < 0.05:
            pins.remove(chance.choice(pins))
        writer.collect(pins, horizon=version, budget=chance.choice([5, 50, 10_000]))
        if version % 150 == 0:
            writer.check()
            for pin in {*pins, version}:
                rows = model.rows(pin)
                assert reader.scan(pin, page_rows=chance.randrange(1, 2000)) == rows
                assert reader.scan(pin, reverse=True, page_rows=chance.randrange(1, 2000)) == rows[::-1]
                for key, value, written in chance.sample(rows, min(50, len(rows))):
                    assert reader.get(key, pin) == (written, value, 0, 0)
    settle(writer)
    writer.check()
    assert writer.stats()["nodes"] == writer.stats()["records"] == model.live_keys()
