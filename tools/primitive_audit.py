"""Auditing what the primitives keep, in every run of every namespace: what `occamdb check` shows beside the files.

It knows no primitive by name: each registered one brings its auditor (`occamdb.primitives.auditing`). Each
part of a run is audited on a snapshot of its own, so a concurrent writer is never taken for a fault.

A directory that nobody serves is recovered into private memory and left as it is. One that is served is read through
its coordinator's shared memory. Repairs are ordinary transactions through a coordinator, so they are logged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from occamdb.tools import console
from occamdb.tools.copy_runs import MARK_TAG

if TYPE_CHECKING:
    from occamdb import Database, RunId
    from occamdb.primitives import Fault, Primitive

FINDINGS_MAX = 1000
REPAIRS_PER_COMMIT = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, or one repair: where it is and what is wrong."""

    namespace: str
    run: str
    primitive: str
    key: str
    message: str
    repairable: bool
    advisory: bool = False


@dataclass(slots=True)
class AuditReport:
    """What the audit found.

    Attributes:
      parts: how many parts of runs were audited.
      faults: how many faults there are.
      repairable: how many of them `--repair` can mend.
      advised: how many keys `--repair` would add that earlier versions did not write. Nothing is wrong without them.
      findings: the first `FINDINGS_MAX` of them.
      repaired: how many were mended.
      repairs: the first `FINDINGS_MAX` of these.
    """

    parts: int = 0
    faults: int = 0
    repairable: int = 0
    advised: int = 0
    findings: list[Finding] = field(default_factory=list)
    repaired: int = 0
    repairs: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing is wrong."""
        return self.faults == 0

    def note(self, finding: Finding) -> None:
        """Count a fault, and keep it if there are not too many."""
        if finding.advisory:
            self.advised += 1
            return
        self.faults += 1
        self.repairable += finding.repairable
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)

    def note_repair(self, finding: Finding) -> None:
        """Count a repair likewise."""
        self.repaired += 1
        if len(self.repairs) < FINDINGS_MAX:
            self.repairs.append(finding)


class Part(NamedTuple):
    """One primitive's keys in one run.

    Attributes:
      db: in the namespace of the run.
      primitive: None if none of this process has that tag.
    """

    db: Database
    run_id: RunId
    tag: int
    primitive: type[Primitive[Any]] | None

    def finding(self, fault: Fault) -> Finding:
        """A fault in here."""
        return Finding(
            *self._place(), fault.key.hex(), fault.message, fault.repair is not None, fault.advisory
        )

    def _place(self) -> tuple[str, str, str]:
        where = self.db.current_namespace
        name = self.primitive.name if self.primitive else f"{self.tag:#04x}"
        return f"{where.tenant}/{where.app}/{where.agent}", str(self.run_id), name

    def misplaced(self) -> Finding | None:
        """The finding if this primitive's keys cannot be in such a run."""
        from occamdb.engine.model.public_types import RESERVED_RUN

        if self.tag == MARK_TAG:
            message = "a copy of this run was interrupted: copy it again, or delete it"
            return Finding(*self._place(), "", message, repairable=False)
        may_be_here = self.primitive is not None and self.primitive.reserved
        if (self.run_id is RESERVED_RUN) == may_be_here:
            return None
        if self.run_id is RESERVED_RUN:
            message = "data under the reserved run, which no call reaches"
        elif self.primitive is not None and self.primitive.reserved:
            message = "keys that belong under the reserved run"
        else:
            return None
        return Finding(*self._place(), "", message, repairable=False)


def audit(
    path: Path, *, repair: bool = False, progress: Callable[[str, int, int], None] | None = None
) -> AuditReport:
    """Audit a directory whose files are sound.

    Args:
      repair: mend what can be derived, through a coordinator of its own that is stopped at the end; none may be
        running.
      progress: of the recovery, as `recovery.recover` calls it.

    Raises:
      OccamError: the database could not be recovered or reached.
    """
    report = AuditReport()
    with console.reading(path, progress=progress) as db:
        _audit_all(db, report)
    if repair and (report.repairable or report.advised):
        mended = AuditReport()
        with _served(path) as db:
            for part in parts(db, mended):
                _repair_part(part, mended)
        report = AuditReport(repaired=mended.repaired, repairs=mended.repairs)
        with console.reading(path, progress=progress) as db:
            _audit_all(db, report)
    return report


@contextmanager
def _served(path: Path) -> Iterator[Database]:
    """The database for writing; its coordinator ends with the block."""
    from occamdb.tools.coordinator import stop_coordinator

    try:
        with console.database(path) as db:
            yield db
    finally:
        stop_coordinator(path)


def _audit_all(db: Database, report: AuditReport) -> None:
    for part in parts(db, report):
        report.parts += 1
        if (misplaced := part.misplaced()) is not None:
            report.note(misplaced)
        elif part.primitive is not None and part.primitive.auditor is not None:
            with part.db.begin(part.run_id, read_only=True) as txn:
                for fault in part.primitive.auditor(txn.space(part.tag, raw=True)):
                    report.note(part.finding(fault))


def _repair_part(part: Part, report: AuditReport) -> None:
    """Mend the faults of one part, a bounded number a commit."""
    from occamdb.primitives.auditing import apply_repair

    auditor = part.primitive.auditor if part.primitive else None
    if auditor is None or part.misplaced() is not None:
        return

    def mend(txn: Any) -> list[Fault]:
        space = txn.space(part.tag, raw=True)
        faults = list(islice((f for f in auditor(space) if f.repair is not None), REPAIRS_PER_COMMIT))
        for fault in faults:
            apply_repair(space, fault)
        return faults

    while True:
        # Isolation "snapshot", because the auditor's read set may be larger than a request may be. The commit
        # checks the source of each repair.
        mended = part.db.transaction(part.run_id, mend, isolation="snapshot")
        for fault in mended:
            report.note_repair(part.finding(fault))
        if len(mended) < REPAIRS_PER_COMMIT:
            return


def parts(db: Database, report: AuditReport) -> Iterator[Part]:
    """Every part of every run of every namespace, found by leaping from one to the next."""
    from occamdb.engine.model.errors import CorruptionError
    from occamdb.engine.model.keys import decode_key, successor, tag_prefix
    from occamdb.engine.model.public_types import RESERVED_RUN
    from occamdb.primitives.extension import registered_primitives

    by_tag = {int(primitive.tag): primitive for primitive in registered_primitives()}
    start: bytes | None = b""
    while start is not None and (key := db.first_key(start)) is not None:
        try:
            decoded = decode_key(key)
        except CorruptionError as error:
            report.note(Finding("", "", "", key.hex(), error.message, repairable=False))
            start = key + b"\0"
            continue
        where, tag = decoded.namespace, int(decoded.tag)
        run_id = where.run_id
        assert run_id is not None
        part_db = db.namespace(where.tenant, where.app, where.agent)
        yield Part(part_db, RESERVED_RUN if run_id == RESERVED_RUN else run_id, tag, by_tag.get(tag))
        start = successor(tag_prefix(where.prefix, tag))
