"""What every browser is told while it looks, made once for all of them.

One thread looks at the database as long as somebody looks at the pages. It gives out messages of two kinds:

    commits   id: the version up to which everything was told; which runs were changed, or that too much was
    figures   a sample of the engine's figures, and how the database is read

1. Messages of commits are numbered by our versions and kept for a while. A browser that comes back with the last id
   that it has seen gets what came after, or, if that is no longer kept, the word that it has missed something. So it
   never shows an old state as the present one.
2. A browser that reads too slowly is dropped; it comes back by itself, as in 1.
3. The thread costs the database the same however many browsers there are.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import occamdb
from occamdb.engine.model.errors import CorruptionError
from occamdb.engine.model.keys import decode_key
from occamdb.tools.inspector.conflicts import ConflictLog
from occamdb.tools.inspector.figures import History
from occamdb.tools.inspector.following import Commit, Follower
from occamdb.tools.inspector.source import Source

__all__ = ["Feed", "Message"]

FIGURES_S = 1.0
COMMITS_APART_S = 0.3  # messages of commits are at least so far apart
IDLE_S = 60.0  # without a browser for so long, the thread rests
COMMITS_TOLD_MAX = 200  # of one look; if there were more, pages are only told that there were many
KEPT_MAX = 512
QUEUE_MAX = 64
HEARTBEAT_S = 15.0


@dataclass(frozen=True, slots=True)
class Message:
    """One server-sent event.

    Attributes:
      name: of the event.
      data: as JSON.
      version: its id, of commits alone.
    """

    name: str
    data: str
    version: int | None = None

    def encode(self) -> bytes:
        """As it is sent. JSON has no line ends, so one `data` line holds it."""
        head = f"id: {self.version}\n" if self.version is not None else ""
        return f"{head}event: {self.name}\ndata: {self.data}\n\n".encode()


class _Subscriber:
    """One browser. Its queue belongs to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.queue: asyncio.Queue[Message | None] = asyncio.Queue(QUEUE_MAX)

    def put(self, message: Message | None) -> None:
        """On the loop: hand over a message; None ends. One that does not read is ended."""
        if self.queue.full():
            while not self.queue.empty():
                self.queue.get_nowait()
            message = None
        self.queue.put_nowait(message)


class Feed:
    """The thread, what it found, and who is told.

    Args:
      source: the database.

    Attributes:
      history: the figures of the last minutes.
      conflicts: the conflicts of the last minutes.
      version: the newest version that was seen; None: none yet.
    """

    def __init__(self, source: Source) -> None:
        self.history = History()
        self.conflicts = ConflictLog()
        self.version: int | None = None
        self._source = source
        self._follower = Follower(COMMITS_TOLD_MAX)
        self._kept: deque[Message] = deque(maxlen=KEPT_MAX)
        self._floor: int | None = None  # what came after this version is kept, or was said to be missing
        self._latest: Message | None = None
        self._subscribers: set[_Subscriber] = set()
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._wanted_until = 0.0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="inspector-feed", daemon=True)

    def start(self) -> None:
        """Look once, and begin to look again and again."""
        self.look()
        self.want()
        self._thread.start()

    def look(self) -> None:
        """Look once. Only before `start`, or by the thread."""
        self._source.look()
        self._look_at_figures()
        self._look_at_commits()

    def stop(self) -> None:
        """End the thread and every subscription. Any thread, but not twice at once."""
        self._stopped = True
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(10.0)
        self._tell(None)

    def want(self) -> None:
        """Somebody looks: the thread works for a while."""
        self._wanted_until = time.monotonic() + IDLE_S
        self._wanted.set()

    # --- The thread ---

    def _run(self) -> None:
        figures_due = time.monotonic() + FIGURES_S
        commits_due = 0.0
        while not self._stopped:
            if not self._subscribers and time.monotonic() > self._wanted_until:
                self._wanted.clear()
                self._wanted.wait()
                continue
            now = time.monotonic()
            if now >= figures_due:
                figures_due = now + FIGURES_S
                self._source.look()
                self._look_at_figures()
            if now >= commits_due and self._look_at_commits():
                commits_due = time.monotonic() + COMMITS_APART_S
            time.sleep(self._source.look_s)

    def _look_at_figures(self) -> None:
        figures = self._source.figures()
        sample = self.history.add(figures)
        conflicts = self.conflicts.add(figures)
        condition = self._source.condition
        data = {
            "sample": None if sample is None else asdict(sample),
            "kind": condition.kind,
            "gone": condition.is_gone,
            "notes": list(condition.notes),
            "version": self.version,
            "conflicts": conflicts,
        }
        self._latest = Message("figures", json.dumps(data))
        self._tell(self._latest)

    def _look_at_commits(self) -> bool:
        """Whether something new was told."""
        try:
            with self._source.reading() as db:
                version, commits, complete = self._follower.look(db)
        except (occamdb.OccamError, OSError):
            return False  # the figures say what is wrong
        before, self.version = self.version, version
        if version == before and not commits:
            return False
        message = _told(version, commits, complete)
        with self._lock:
            if self._floor is None or not complete:
                # Whoever saw an older version learns from this message that it has missed something.
                self._kept.clear()
                self._floor = before if before is not None and before <= version else -1
            if len(self._kept) == KEPT_MAX:
                self._floor = self._kept[0].version
            self._kept.append(message)
        self._tell(message)
        return True

    # --- Browsers ---

    def _tell(self, message: Message | None) -> None:
        with self._lock:
            for subscriber in list(self._subscribers):
                try:
                    subscriber.loop.call_soon_threadsafe(subscriber.put, message)
                except RuntimeError:  # its loop has ended
                    self._subscribers.discard(subscriber)

    def _missed(self, seen: int | None) -> list[Message]:
        """With the lock: what a browser that has seen a version has to be told at once."""
        found: list[Message] = []
        if seen is not None and self.version is not None and seen != self.version:
            if self._floor is not None and self._floor <= seen < self.version:
                found = [each for each in self._kept if each.version is not None and each.version > seen]
            else:
                found = [_told(self.version, [], False)]
        return [*found, *([self._latest] if self._latest is not None else [])]

    async def subscribe(self, seen: int | None) -> AsyncIterator[bytes]:
        """The messages from now on, and first what came after the version that a browser has seen."""
        self.want()
        subscriber = _Subscriber(asyncio.get_running_loop())
        with self._lock:
            first = self._missed(seen)
            self._subscribers.add(subscriber)
        try:
            yield b"retry: 1000\n\n"
            for message in first:
                yield message.encode()
            while not self._stopped:
                try:
                    following = await asyncio.wait_for(subscriber.queue.get(), HEARTBEAT_S)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if following is None:
                    return
                yield following.encode()
        finally:
            with self._lock:
                self._subscribers.discard(subscriber)
            self.want()


def _told(version: int, commits: list[Commit], complete: bool) -> Message:
    """The message that says which runs some commits changed."""
    runs: dict[str, None] = {}
    for commit in commits:
        for change in commit.changes:
            run = _run_of(change[1])
            if run is None or change[2] is not None:
                complete = False  # a range may hold several runs
            else:
                runs[run] = None
    data: dict[str, Any] = {"version": version, "count": len(commits), "complete": complete, "runs": [*runs]}
    return Message("commits", json.dumps(data), version)


def _run_of(key: bytes) -> str | None:
    try:
        return str(decode_key(key).namespace.run_id)
    except CorruptionError:
        return None
