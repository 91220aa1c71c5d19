"""A signal handler that raises between two lines of a watch that reads the log: nothing is lost or given twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from occamdb import RunId
from occamdb.engine.transaction.feeds import Feed
from tests.support.processes import kill_coordinator, open_database, stop_coordinator


class Interrupted(BaseException):
    """Raised by the signal handler."""


class InterruptedFeed:
    """A feed whose first `skip_to` never happens."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.interrupts = 1

    def skip_to(self, version: int) -> None:
        if self.interrupts:
            self.interrupts -= 1
            raise Interrupted
        self._feed.skip_to(version)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)


def test_what_was_read_from_the_log_is_not_read_again(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db:
        for number in range(3):
            db.put(run, "n", number)
        kill_coordinator(tmp_path)
        db.put(run, "n", 3)
        # The new coordinator's ring begins after the first three: they come from the log.
        with db.watch(run, since=0, timeout=0) as watch:
            reader = watch._reader
            reader._feed = feed = InterruptedFeed(reader._feed)
            with pytest.raises(Interrupted):
                next(watch)
            assert feed.interrupts == 0
            assert [change.value for change in watch] == [0, 1, 2, 3]
        stop_coordinator(tmp_path)
