"""The transactions of a history, as flat arrays, and where to find each again on file.

A history of 200,000 transactions does not fit comfortably in Python objects; the checker keeps per
transaction its times, its outcome and the place of its record, and reads the record again for an example.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

from occamdb.stress.checker.report import Report
from occamdb.stress.history import OUTCOME_NAMES, Recorded, read_header, read_history


class Table:
    """All transactions of one history; a transaction is its index."""

    def __init__(self, paths: list[Path], report: Report):
        """Prepare to load `paths`, the files of one history; nothing is read yet except headers."""
        self.paths = paths
        self.report = report
        self.workers = [read_header(path).worker for path in paths]
        self.invoked = array("q")
        self.returned = array("q")
        self.outcome = array("b")
        self.version = array("Q")
        self._file = array("H")
        self._offset = array("Q")

    def load(self) -> Iterator[tuple[int, Recorded]]:
        """Read every file once, yielding (index, transaction) for the caller to digest and forget."""
        for number, path in enumerate(self.paths):
            for offset, found in read_history(path):
                index = len(self.outcome)
                self.invoked.append(found.invoked)
                self.returned.append(found.returned)
                self.outcome.append(found.outcome)
                self.version.append(found.version)
                self._file.append(number)
                self._offset.append(offset)
                self.report.operations += len(found.ops)
                yield index, found
        self.report.transactions = len(self.outcome)
        self.report.committed, self.report.refused, self.report.unknown = map(self.outcome.count, range(3))

    def __len__(self) -> int:
        return len(self.outcome)

    def record(self, index: int) -> Recorded:
        """Read one transaction again from its file."""
        path = self.paths[self._file[index]]
        return next(read_history(path, self._offset[index]))[1]

    def name(self, index: int) -> str:
        """A short name for examples: worker and byte offset of the record."""
        return f"T{index}"

    def describe(self, index: int) -> str:
        """One line: name, worker, outcome, times and operations."""
        found = self.record(index)
        worker = self.workers[self._file[index]]
        end = "" if found.outcome == 2 else f", returned +{(found.returned - found.invoked) / 1e3:.0f} us"
        return (
            f"{self.name(index)} = {found.describe()}    "
            f"[worker {worker}, {OUTCOME_NAMES[found.outcome]}, invoked {found.invoked}{end}]"
        )

    def describe_all(self, *indices: int) -> str:
        """The lines of several transactions, each once."""
        return "\n".join(self.describe(index) for index in dict.fromkeys(indices))
