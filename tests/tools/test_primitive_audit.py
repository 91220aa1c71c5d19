"""`occamdb check` audits what the primitives keep, and `--repair` mends what follows from records, and nothing else."""

import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import Custom, RunId, Thought
from occamdb.engine.client.offline import recovered_database
from occamdb.engine.model.public_types import RESERVED_RUN, TypeTag
from occamdb.primitives import Fault, Primitive, Repair, extension, layout
from occamdb.tools import primitive_audit
from occamdb.tools.coordinator import coordinator_of, stop_coordinator
from tests.support.audit import audit as expect_in_order
from tests.support.shell import Shell

NAMESPACE = ("tenant", "app", "agent")


def fill(db: Any) -> RunId:
    """A run with everything that is indexed."""
    parent = db.runs.create_run_with_options("parent", tags=["a", "b"]).run_id
    run = db.runs.create_run_with_options("child", parent=parent, tags=["b"]).run_id
    db.runs.fail_run(parent, "no")
    top = db.traces.record(run, Thought("top"), tags=["t", "u"])
    for number in range(3):
        child = db.traces.record_child(run, top, Custom(f"name {number}", number), tags=["t"])
        db.traces.record_child(run, child, Thought("leaf"))
    for number in range(6):
        db.events.append(run, ("even", "odd")[number % 2], {"n": number})
    db.kv.put(run, "k", 1)
    db.cells.init(run, "c", 1)
    assert isinstance(run, RunId)
    return run


@pytest.fixture
def path(database_path: Path) -> Path:
    """A database that is not served, filled in the default namespace and in another."""
    with occamdb.open(database_path) as db:
        fill(db)
        fill(db.namespace(*NAMESPACE))
    stop_coordinator(database_path)
    return database_path


def change(path: Path, work: Callable[[Any], None]) -> None:
    """Do something to a database that is not served; it is not served afterwards either."""
    with occamdb.open(path) as db:
        work(db)
    stop_coordinator(path)


def snapshot(db: Any) -> dict[tuple[RunId, int, bytes], Any]:
    """Every stored key of one namespace's runs, with its value."""
    found = {}
    for run in [RESERVED_RUN, *(each.run_id for each in db.runs.list_runs())]:
        for tag in TypeTag:
            for key, row in db.space(run, tag, raw=True).scan():
                found[run, int(tag), key] = row.value
    return found


def files(path: Path) -> dict[str, bytes]:
    return {
        str(each): each.read_bytes() for each in path.rglob("*") if each.is_file() and each.name != "LOCK"
    }


# --- Sound databases -----------------------------------------------------------------------------


def test_a_sound_database_is_sound_and_untouched(path: Path, shell: Shell) -> None:
    before = files(path)
    found = shell.json("check", "DB", "--json")
    assert found["check"]["sound"] and found["primitives"]["sound"]
    # In both namespaces: the index, and four parts of one run.
    assert found["primitives"]["parts"] == 10
    assert shell("check", "DB").rstrip().endswith("sound")
    assert files(path) == before and coordinator_of(path) is None


def test_repairing_a_sound_database_does_nothing(path: Path, shell: Shell) -> None:
    out = shell("check", "DB", "--repair")
    assert "nothing to do" in out and out.rstrip().endswith("sound")
    assert coordinator_of(path) is None


def test_a_database_that_was_killed_is_audited(path: Path, shell: Shell) -> None:
    with occamdb.open(path) as db:
        fill(db)
        stop_coordinator(path, kill=True)
    assert shell.json("check", "DB", "--json")["primitives"]["parts"] == 14
    change(path, lambda db: None)  # the next coordinator removes the segments that the killed one left


def test_an_empty_database_has_no_parts(database_path: Path, shell: Shell) -> None:
    change(database_path, lambda db: None)
    assert shell.json("check", "DB", "--json")["primitives"]["parts"] == 0


def test_it_works_beside_writers(path: Path, shell: Shell) -> None:
    """No half of a commit, and no commit between two looks, is taken for a fault."""
    with occamdb.open(path) as db:
        over = threading.Event()
        errors: list[BaseException] = []

        def write() -> None:
            try:
                while not over.is_set():
                    run = fill(db)
                    db.runs.delete_run(run)
            except BaseException as error:
                errors.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            holder = coordinator_of(path)
            for _ in range(5):
                assert shell.json("check", "DB", "--json")["primitives"]["faults"] == 0
            assert coordinator_of(path) == holder
        finally:
            over.set()
            writer.join()
        assert errors == []


def test_files_only_leaves_it_out(path: Path, shell: Shell) -> None:
    change(path, lambda db: damage_index(db))
    assert shell.json("check", "DB", "--files-only", "--json")["primitives"] is None
    shell("check", "DB", code=1)


# --- What is derived is found and mended -----------------------------------------------------------


def derived_keys(db: Any) -> list[tuple[RunId, int, bytes]]:
    """Every index entry and head of the namespace. The mark of the index by name may be missing: no fault."""
    records = {TypeTag.EVENT: layout.EVENT, TypeTag.TRACE: layout.TRACE, TypeTag.RUN: layout.RUN}
    return [
        (run, tag, key)
        for run, tag, key in snapshot(db)
        if tag in records and not key.startswith(records[TypeTag(tag)]) and key != layout.RUN_NAMES_WHOLE
    ]


def damage_index(db: Any) -> None:
    run, tag, key = derived_keys(db)[0]
    db.space(run, tag, raw=True).delete(key)


@pytest.fixture
def memory() -> Iterator[Any]:
    with occamdb.open_in_memory() as db:
        fill(db)
        yield db


def found_in(db: Any) -> primitive_audit.AuditReport:
    report = primitive_audit.AuditReport()
    primitive_audit._audit_all(db, report)
    return report


def repaired(db: Any) -> primitive_audit.AuditReport:
    report = primitive_audit.AuditReport()
    for part in primitive_audit.parts(db, report):
        primitive_audit._repair_part(part, report)
    return report


def test_every_derived_key_that_is_gone_is_found_and_rebuilt(memory: Any) -> None:
    whole = snapshot(memory)
    keys = derived_keys(memory)
    assert len(keys) > 40
    for run, tag, key in keys:
        memory.space(run, tag, raw=True).delete(key)
        (finding,) = found_in(memory).findings
        assert finding.repairable and finding.key == key.hex()
        assert repaired(memory).repaired == 1
        assert snapshot(memory) == whole
    assert found_in(memory).sound


def test_every_superfluous_entry_is_found_and_removed(memory: Any) -> None:
    whole = snapshot(memory)
    for run, tag, key in derived_keys(memory):
        if (tag, key) in ((TypeTag.EVENT, layout.EVENT_HEAD), (TypeTag.RUN, layout.RUN_NAMES_WHOLE)):
            continue
        # Of a record that is not there, and of one that does not call for it.
        other = bytearray(key)
        other[-1] ^= 1
        wrong = bytearray(key)
        wrong[-layout.SUFFIX_SIZE if tag != TypeTag.EVENT else -9] ^= 1
        for bad in (bytes(other), bytes(wrong)):
            if (run, tag, bad) in whole:
                continue
            memory.space(run, tag, raw=True).put(bad, None)
            report = found_in(memory)
            assert report.repairable == report.faults == 1, (tag, key, report.findings)
            assert repaired(memory).repaired == 1
            assert snapshot(memory) == whole


def test_random_damage_of_derived_keys_is_mended_whole(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primitive_audit, "REPAIRS_PER_COMMIT", 3)
    whole, generator = snapshot(memory), random.Random(5)
    for _ in range(10):
        for run, tag, key in generator.sample(derived_keys(memory), 20):
            memory.space(run, tag, raw=True).delete(key)
            stray = key[:-8] + generator.randbytes(8)
            if key != layout.EVENT_HEAD:
                memory.space(run, tag, raw=True).put(stray, None)
        assert not found_in(memory).sound
        repaired(memory)
        assert found_in(memory).sound and snapshot(memory) == whole
    expect_in_order(memory, *(run.run_id for run in memory.runs.list_runs()))


def test_a_head_that_is_behind_moves_forward(memory: Any) -> None:
    run = memory.runs.query_runs(tag="b", status="active")[0].run_id
    whole = snapshot(memory)
    second = memory.events.read(run, 1)
    memory.space(run, TypeTag.EVENT, raw=True).put(layout.EVENT_HEAD, [2, second.hash])
    assert repaired(memory).repaired == 1
    assert snapshot(memory) == whole and memory.events.verify_chain(run).is_valid


def test_check_and_repair_of_a_directory(path: Path, shell: Shell) -> None:
    with occamdb.open(path) as db:
        default, other = snapshot(db), snapshot(db.namespace(*NAMESPACE))
    stop_coordinator(path)

    def damage(db: Any) -> None:
        for here in (db, db.namespace(*NAMESPACE)):
            for run, tag, key in derived_keys(here)[::3]:
                here.space(run, tag, raw=True).delete(key)

    change(path, damage)
    before = files(path)
    out = shell("check", "DB", code=1)
    assert "fault" in out and "missing" in out and "--repair" in out.splitlines()[-1]
    assert "/".join(NAMESPACE) in out
    assert files(path) == before and coordinator_of(path) is None
    found = shell.json("check", "DB", "--json", code=1)["primitives"]
    assert found["faults"] == found["repairable"] == len(found["findings"]) > 20
    mended = shell.json("check", "DB", "--repair", "--json")["primitives"]
    assert (mended["sound"], mended["repaired"], len(mended["repairs"])) == (
        True,
        found["faults"],
        found["faults"],
    )
    assert coordinator_of(path) is None
    with occamdb.open(path) as db:
        assert (snapshot(db), snapshot(db.namespace(*NAMESPACE))) == (default, other)


def test_faults_are_found_beside_a_coordinator(path: Path, shell: Shell) -> None:
    with occamdb.open(path) as db:
        damage_index(db)
        holder = coordinator_of(path)
        assert "fault" in shell("check", "DB", code=1)
        assert coordinator_of(path) == holder


# --- What users wrote is found and left ------------------------------------------------------------


def spoil_event(db: Any, run: RunId) -> None:
    space = db.space(run, TypeTag.EVENT, raw=True)
    space.put(layout.event(2), space.get(layout.event(2)) + b"x")


def lose_event(db: Any, run: RunId) -> None:
    db.space(run, TypeTag.EVENT, raw=True).delete(layout.event(5))
    db.space(run, TypeTag.EVENT, raw=True).delete(layout.events_of_type("odd") + layout.u64(5))


def swap_head(db: Any, run: RunId) -> None:
    db.space(run, TypeTag.EVENT, raw=True).put(layout.EVENT_HEAD, [6, bytes(32)])


def break_head(db: Any, run: RunId) -> None:
    db.space(run, TypeTag.EVENT, raw=True).put(layout.EVENT_HEAD, "what")


def spoil_trace(db: Any, run: RunId) -> None:
    space = db.space(run, TypeTag.TRACE, raw=True)
    space.put(next(space.keys(layout.TRACE)), b"\xc1")


def foreign_trace(db: Any, run: RunId) -> None:
    space = db.space(run, TypeTag.TRACE, raw=True)
    space.put(next(space.keys(layout.TRACE)), [1, 2])


def orphan_trace(db: Any, run: RunId) -> None:
    space = db.space(run, TypeTag.TRACE, raw=True)
    (leaf,) = db.traces.query_by_type(run, "name 1")
    raw = bytes.fromhex(leaf.id.replace("-", ""))
    for key in [k for k in space.keys(b"") if k.endswith(raw) and k[:1] != layout.TRACE] + [
        layout.trace(raw)
    ]:
        space.delete(key)


def spoil_run(db: Any, run: RunId) -> None:
    db.space(RESERVED_RUN, TypeTag.RUN, raw=True).put(layout.run(run.bytes), {"a": 1})


def orphan_run(db: Any, run: RunId) -> None:
    space = db.space(RESERVED_RUN, TypeTag.RUN, raw=True)
    record = space.get(layout.run(run.bytes))
    parent = record[2]
    for key in [
        k for k in space.keys(b"") if k.endswith(parent) and not k.startswith(layout.RUN_BY_PARENT + parent)
    ]:
        space.delete(key)


def finished_without_time(db: Any, run: RunId) -> None:
    space = db.space(RESERVED_RUN, TypeTag.RUN, raw=True)
    parent = space.get(layout.run(run.bytes))[2]
    record = space.get(layout.run(parent))
    record[7] = None
    space.put(layout.run(parent), record)


def unknown_key(db: Any, run: RunId) -> None:
    for tag in (TypeTag.EVENT, TypeTag.TRACE):
        db.space(run, tag, raw=True).put(b"\x77what", 1)


SPOILERS = [
    spoil_event,
    lose_event,
    swap_head,
    break_head,
    spoil_trace,
    foreign_trace,
    orphan_trace,
    spoil_run,
    orphan_run,
    finished_without_time,
    unknown_key,
]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda each: each.__name__)
def test_a_fault_of_a_record_is_reported_and_never_mended(memory: Any, spoil: Any) -> None:
    run = memory.runs.query_runs(tag="b", status="active")[0].run_id
    spoil(memory, run)
    report = found_in(memory)
    assert report.faults >= 1 and report.repairable == 0, report.findings
    spaces = {
        (where, tag): list(memory.space(where, tag, raw=True).scan())
        for where in (run, RESERVED_RUN)
        for tag in TypeTag
    }
    assert repaired(memory).repaired == 0
    for (where, tag), rows in spaces.items():
        assert list(memory.space(where, tag, raw=True).scan()) == rows


def test_such_a_fault_is_exit_code_1_also_after_a_repair(path: Path, shell: Shell) -> None:
    def spoil(db: Any) -> None:
        run = db.runs.query_runs(tag="b", status="active")[0].run_id
        spoil_event(db, run)
        damage_index(db)

    change(path, spoil)
    found = shell.json("check", "DB", "--repair", "--json", code=1)
    assert found["primitives"]["repaired"] == 1
    assert found["primitives"]["repairable"] == 0 and found["primitives"]["faults"] >= 1
    assert "only their authors" in shell("check", "DB", code=1)


# --- The frame -------------------------------------------------------------------------------------


def test_a_further_primitive_brings_its_own_auditor(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def audit_pairs(space: Any) -> Iterator[Fault]:
        for key in space.keys(b"a"):
            if not space.exists(b"b" + key[1:]):
                yield Fault(b"b" + key[1:], "no partner", Repair(key, space.get(key)))

    class Pairs(Primitive[Any]):
        name = "pairs"
        tag = 0x33
        auditor = staticmethod(audit_pairs)

    monkeypatch.setattr(extension, "_registered", [*extension._registered, Pairs])
    run = RunId.new()
    memory.space(run, 0x33, raw=True).put(b"a1", 7)
    (finding,) = found_in(memory).findings
    assert (finding.primitive, finding.run, finding.message) == ("pairs", str(run), "no partner")
    assert repaired(memory).repaired == 1
    assert memory.space(run, 0x33, raw=True).get(b"b1") == 7 and found_in(memory).sound


def test_data_under_the_reserved_run_is_reported(memory: Any) -> None:
    memory.space(RESERVED_RUN, TypeTag.KV).put("k", 1)
    (finding,) = found_in(memory).findings
    assert "reserved" in finding.message and not finding.repairable
    assert repaired(memory).repaired == 0


def test_findings_are_kept_up_to_a_bound_and_counted_beyond(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primitive_audit, "FINDINGS_MAX", 5)
    for run, tag, key in derived_keys(memory):
        memory.space(run, tag, raw=True).delete(key)
    report = found_in(memory)
    assert len(report.findings) == 5 and report.faults > 40


def test_memory_does_not_grow_with_the_run(memory: Any) -> None:
    def peak() -> int:
        tracemalloc.start()
        try:
            assert found_in(memory).sound
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    run = RunId.new()
    memory.traces.record(run, Thought("x" * 100))
    small = peak()
    for _ in range(8):
        memory.transaction(
            run,
            lambda txn: [
                (txn.traces.record(Thought("x" * 100), tags=["t"]), txn.events.append("e", {"n": n}))
                for n in range(250)
            ],
        )
    assert peak() < small + (256 << 10)


def test_a_repair_whose_record_changes_meanwhile_is_done_again(memory: Any) -> None:
    """The repair's snapshot is older than a deletion: without its check an entry without a record would stay."""
    run = memory.runs.create_run_with_options(tags=["late"]).run_id
    key = next(memory.space(RESERVED_RUN, TypeTag.RUN, raw=True).keys(layout.runs_tagged("late")))
    memory.space(RESERVED_RUN, TypeTag.RUN, raw=True).delete(key)
    raced: list[RunId] = []

    class Racing:
        """Deletes the run between the audit and the commit of the first attempt."""

        def __getattr__(self, name: str) -> Any:
            return getattr(memory, name)

        def transaction(self, run_id: Any, fn: Any, **options: Any) -> Any:
            def race(txn: Any) -> Any:
                faults = fn(txn)
                if faults and not raced:
                    raced.append(run)
                    memory.runs.delete_run(run)
                return faults

            return memory.transaction(run_id, race, **options)

    report = primitive_audit.AuditReport()
    for part in primitive_audit.parts(memory, report):
        racing: Any = Racing()
        primitive_audit._repair_part(part._replace(db=racing), report)
    assert raced and report.repaired == 0
    assert found_in(memory).sound


def test_a_recovered_database_is_private(path: Path) -> None:
    before = files(path)
    with recovered_database(occamdb.Database, path) as db:
        run = db.runs.list_runs()[0].run_id
        db.kv.put(run, "new", 1)
        assert db.kv.get(run, "new") == 1
    assert files(path) == before
    with recovered_database(occamdb.Database, path) as db:
        assert db.kv.get(run, "new") is None


def test_an_index_of_an_earlier_version_gets_its_names(memory: Any) -> None:
    whole = snapshot(memory)
    space = memory.space(RESERVED_RUN, TypeTag.RUN, raw=True)
    for key in [*space.keys(layout.RUN_BY_NAME), *space.keys(layout.RUN_NAMES_WHOLE)]:
        space.delete(key)
    child = memory.runs.find("child")
    memory.runs.create_run("child")
    assert memory.runs.find("child") == child
    assert not space.exists(layout.RUN_NAMES_WHOLE)
    report = repaired(memory)
    assert report.repaired == 3  # two entries and the mark
    assert found_in(memory).sound and whole.keys() <= snapshot(memory).keys()
    assert memory.runs.find("child") == child
