"""Turns in plain Python: what they promise, for the compiled ones to be compared with.

A transaction that has lost some times asks, with its next request, for a turn on what it read and wrote.

1. *One line.* Requests that have to wait, and turns, stand in one line in the order in which they came.
2. *Waiting.* A request waits while it would invalidate a running turn of somebody else. Nothing else waits, apart
   from rule 3.
3. *Starting.* A request that asks and loses gets its answer when its turn starts. The turn starts when nothing before
   it in the line conflicts with it: neither a turn, running or waiting, nor a waiting request that would invalidate
   it. So no turn overtakes one that it conflicts with, and nothing that came before a turn can break it.
4. *Ending.* A turn ends when its holder's next request arrives, TURN_MAX after it started, when its holder dies, and
   when the coordinator does. The holder's request is judged first. Then what waits is looked at again: first those that
   never ask, in the order in which they came, then the others.
5. *Keeping.* If the holder's request arrives within QUANTUM after the turn started, the turn does not end but is kept
   for further transactions of the same sender. It ends QUANTUM after it started; when BACK has passed without a request
   of the sender; and when the sender's next request does not touch it, or has to wait itself.
6. *Resting.* After a turn, no turn that conflicts with it starts for REST_FACTOR times as long as it has lasted, and
   REST at least. Its place stays in the line for that time. Requests do not wait for it. A turn that was kept, or was
   shorter than QUANTUM, rests only if a request that has waited for it commits: all others wanted a turn themselves.
7. *Patience.* A patient request has not lost often enough to ask. It gets a turn nevertheless if it has waited for a
   turn that so far needs no rest for that, and loses.
8. *Judging.* A request is judged when it stops waiting, by the rules for every request: first committer wins.

What follows from this, for the tests to check:

- No cycle. A request waits only for running turns, and for what came before it. The holder of a running turn waits for
  nobody: as soon as its request arrives, it holds nothing.
- Waits are bounded. The oldest turn in the line runs or waits for rests to be over: nothing before it is a turn, so
  nothing before it waits. It ends within TURN_MAX, and its rest within REST_FACTOR x TURN_MAX. A request with n turns
  and rests before it therefore waits for at most n x (1 + REST_FACTOR) x TURN_MAX.
- Attempts are bounded. The transaction begins its next attempt after its turn started, so its snapshot has all that
  was committed before. Nothing that would invalidate it is committed while the turn lasts. If it comes back within
  TURN_MAX and reads and writes no more than before, it waits for no other turn, because two running turns do not
  conflict; and it has no conflict. So it needs `turn_after` attempts, and one more, and one more for each time that
  what it read or wrote grew between two attempts. A restart of the coordinator ends turns, and may cost an attempt too.
- Keeping changes none of this. A turn that is kept ends sooner than TURN_MAX, waits for nothing, and stands before what
  came later as any other turn does. The sender's further transactions only profit from it.
- Throughput. A transaction whose attempts take a time d, and that runs again and again, holds a turn for d only after
  `turn_after` attempts that took d each and held nobody up. So one of them takes at most 1/(turn_after + 1) of the time
  of those it conflicts with. However many of them there are, rests see to it that turns take no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = [
    "BACK",
    "QUANTUM",
    "REST_FACTOR",
    "TURN_MAX",
    "Committed",
    "Footprint",
    "Lost",
    "Request",
    "TurnModel",
]

TURN_MAX = 20
REST = 1
REST_FACTOR = 3
QUANTUM = 4
BACK = 2

Span = tuple[int, int]  # [start, end)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a transaction read and wrote. Keys are small integers.

    Attributes:
      reads: keys that were read or compared.
      ranges: spans that were walked.
      writes: keys put or deleted: somebody else's write to one of them is a conflict.
      adds: keys incremented: somebody else's write to one of them is none.
      cleared: spans that are deleted.
    """

    reads: frozenset[int] = frozenset()
    ranges: tuple[Span, ...] = ()
    writes: frozenset[int] = frozenset()
    adds: frozenset[int] = frozenset()
    cleared: tuple[Span, ...] = ()

    def guards(self, key: int) -> bool:
        """Whether a write of `key` by somebody else would be a conflict."""
        return (
            key in self.reads
            or key in self.writes
            or any(start <= key < end for start, end in self.ranges + self.cleared)
        )

    def changes(self, key: int) -> bool:
        """Whether it writes `key`."""
        return (
            key in self.writes or key in self.adds or any(start <= key < end for start, end in self.cleared)
        )

    @property
    def hull(self) -> Span:
        """From the first key to behind the last."""
        spans = [(key, key + 1) for key in self.reads | self.writes | self.adds]
        spans += self.ranges + self.cleared
        return min((start for start, _ in spans), default=0), max((end for _, end in spans), default=0)

    def breaks(self, other: Footprint) -> bool:
        """Whether committing this may invalidate `other`.

        It is enough for a deleted span to meet `other` anywhere between its first and its last key.
        """
        if any(other.guards(key) for key in self.writes | self.adds):
            return True
        if not self.cleared:
            return False
        low, high = other.hull
        return any(start < high and low < end for start, end in self.cleared)

    def within(self, other: Footprint, keys: range) -> bool:
        """Whether it reads and writes nothing but what `other` does."""
        return all(
            (not self.guards(key) or other.guards(key)) and (not self.changes(key) or other.changes(key))
            for key in keys
        ) and set(self.cleared) <= set(other.cleared)


@dataclass(slots=True)
class Request:
    """A commit request.

    Attributes:
      sender: who sent it.
      token: names the transaction over all its attempts; 0 for one that never asks.
      asks: "if I lose, grant me a turn".
      patient: it has a token, and does not ask yet.
      start: version of its snapshot; None: no snapshot, so it cannot lose.
    """

    sender: int
    footprint: Footprint
    start: int | None
    token: int = 0
    asks: bool = False
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Committed:
    """The answer to a request that won."""

    version: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The answer to a request that lost; `turn`: its turn has started."""

    turn: bool


@dataclass(slots=True)
class Place:
    """A place in the line.

    Attributes:
      ends: when its turn ends, or its rest; None while it waits.
      ahead: how many turns, asked for, running or resting, were before it when it came.
      rests: its turn is over.
      started: when its turn started.
      kept: it is kept for further transactions of its sender.
      back_by: until when the next one of them has to arrive.
      spare: it is over, and needs no rest so far.
      behind: the turn that its request has last waited for.
    """

    request: Request
    came: int
    ahead: int
    ends: int | None = None
    rests: bool = False
    started: int = 0
    kept: bool = False
    back_by: int = 0
    spare: bool = False
    behind: Place | None = None

    @property
    def waiting(self) -> bool:
        """Whether its request has no answer yet."""
        return self.ends is None

    @property
    def running(self) -> bool:
        """Whether this is a turn that has started, and is not over."""
        return self.ends is not None and not self.rests


@dataclass(slots=True)
class TurnModel:
    """The coordinator, as far as turns go. `answers` has what was answered, in that order."""

    keys: range
    turn_max: int = TURN_MAX
    rest: int | None = REST  # None: there are no rests
    quantum: int = QUANTUM  # 0: no turn is kept
    back: int = BACK
    now: int = 0
    version: int = 0
    written: dict[int, int] = field(default_factory=dict)  # key: version of its last write
    versions: dict[int, list[tuple[int, int]]] = field(
        default_factory=dict
    )  # key: (since, version; 0 absent)
    cleared: list[tuple[Span, int]] = field(default_factory=list)
    line: list[Place] = field(default_factory=list)
    answers: list[tuple[Request, Committed | Lost]] = field(default_factory=list)
    commits: list[Request] = field(default_factory=list)
    granted: int = 0
    waited: int = 0
    expired: int = 0

    def submit(self, request: Request) -> None:
        """A request arrives."""
        self._come_back(request)
        ahead = sum(not place.waiting or place.request.token != 0 for place in self.line)
        place = Place(request, self.now, ahead)
        self.line.append(place)
        # What waited for the turn that has just ended is looked at after this request: it must not beat its holder.
        if not self._serve(place):
            self.waited += 1
            # Nobody holds up others while it waits itself.
            self._end(lambda place: place.kept and place.request.sender == request.sender)
        self.settle()

    def advance(self, time: int) -> None:
        """Time passes. Turns end on time."""
        until = self.now + time
        while True:
            ends = [end for place in self.line if (end := self._end_of(place)) is not None and end <= until]
            if not ends:
                break
            self.now = min(ends)
            self.line = [place for place in self.line if not (place.rests and place.ends == self.now)]
            over = [place for place in self.line if place.running and self._end_of(place) == self.now]
            self.expired += sum(not place.kept for place in over)
            self._end_these(over)
            self.settle()
        self.now = until

    def die(self, sender: int) -> None:
        """A worker dies. What it sent is served, but nobody waits for its turns."""
        self._end(lambda place: place.request.sender == sender)
        for place in self.line:
            if place.request.sender == sender and place.waiting:
                place.request.asks = place.request.patient = False
                place.request.token = 0
        self.settle()

    def restart(self) -> list[Request]:
        """The coordinator dies; the next one knows no turns. Returns the requests that are to be sent again."""
        unanswered = [place.request for place in self.line if place.waiting]
        self.line.clear()
        return unanswered

    def _end(self, which: Callable[[Place], bool]) -> None:
        self._end_these([place for place in self.line if place.running and which(place)])

    def _end_these(self, places: list[Place]) -> None:
        for place in places:
            lasted = self.now - place.started
            place.spare = place.kept or lasted < self.quantum
            if self.rest is None and not place.spare:
                self.line.remove(place)
            else:
                place.rests, place.ends = True, self.now + max(self.rest or 0, REST_FACTOR * lasted)
                if self.rest is None:
                    place.ends = self.now

    def _end_of(self, place: Place) -> int | None:
        """When it is over, if nothing happens before."""
        if place.ends is None or not (place.kept and place.running):
            return place.ends
        return min(place.ends, place.back_by)

    def _come_back(self, request: Request) -> None:
        """A request may be the one that a running turn was granted for, or be of a sender who keeps one."""
        for place in [place for place in self.line if place.running]:
            if place.kept:
                if place.request.sender != request.sender:
                    continue
                if not request.footprint.breaks(place.request.footprint):
                    self._end_these([place])
            elif request.token and place.request.token == request.token:
                if self.now < place.started + self.quantum:
                    place.kept, place.ends = True, place.started + self.quantum
                else:
                    self._end_these([place])
            else:
                continue
            place.back_by = self.now + self.back
            return

    def settle(self) -> None:
        """Serve what no longer has to wait, and start the turns that can start."""
        progress = True
        while progress:
            progress = False
            for may_ask in (False, True):
                for place in list(self.line):
                    if (place.request.token != 0) is may_ask and place.waiting and self._serve(place):
                        progress = True
            self.line = [place for place in self.line if not place.spare]

    def _serve(self, place: Place) -> bool:
        """Judge a request that waits, unless it has to wait on. True: it has its answer."""
        request = place.request
        obstacle = self._obstacle(request)
        if obstacle is not None:
            place.behind = obstacle
            return False
        if not self.has_conflict(request):
            self.line.remove(place)
            if place.behind is not None and place.behind.spare:
                place.behind.spare = False
                if self.rest is None:
                    self.line.remove(place.behind)
            self._commit(request)
            return True
        wants = request.asks or (request.patient and place.behind is not None and place.behind.spare)
        if wants:
            self._end(lambda one: one.kept and one.request.sender == request.sender)
            if not self._may_start(place):
                return False
            place.started, place.ends = self.now, self.now + self.turn_max
            self.granted += 1
        else:
            self.line.remove(place)
        self.answers.append((request, Lost(wants)))
        return True

    def version_at(self, key: int, version: int) -> int:
        """The version of a key in a snapshot; 0 absent."""
        return max((entry for entry in self.versions.get(key, ()) if entry[0] <= version), default=(0, 0))[1]

    def _obstacle(self, request: Request) -> Place | None:
        """The first running turn of somebody else that it would invalidate."""
        for place in self.line:
            own = place.kept and place.request.sender == request.sender
            if place.running and not own and request.footprint.breaks(place.request.footprint):
                return place
        return None

    def _may_start(self, place: Place) -> bool:
        mine = place.request.footprint
        for other in self.line:
            if other is place:
                return True
            if other.spare:
                continue
            theirs = other.request.footprint
            if theirs.breaks(mine):
                return False
            if (not other.waiting or other.request.token != 0) and mine.breaks(theirs):
                return False
        raise AssertionError("it is not in the line")

    def has_conflict(self, request: Request) -> bool:
        """First committer wins."""
        start = request.start
        if start is None:
            return False
        mine = request.footprint
        if any(self.version_at(key, start) != self.version_at(key, self.version) for key in mine.reads):
            return True
        if any(
            key in mine.writes or any(low <= key < high for low, high in mine.ranges + mine.cleared)
            for key, version in self.written.items()
            if version > start
        ):
            return True
        return any(
            version > start and (low <= key < high)
            for (low, high), version in self.cleared
            for key in mine.adds | mine.writes
        ) or any(
            version > start and low < mine_high and mine_low < high
            for (low, high), version in self.cleared
            for mine_low, mine_high in mine.cleared
        )

    def _commit(self, request: Request) -> None:
        mine = request.footprint
        self.version += 1
        for key in self.keys:
            if key in mine.writes or key in mine.adds:
                self.written[key] = self.version
                self.versions.setdefault(key, []).append((self.version, self.version))
            elif mine.changes(key) and self.version_at(key, self.version):
                self.written[key] = self.version
                self.versions[key].append((self.version, 0))
        self.cleared += [(span, self.version) for span in mine.cleared]
        self.commits.append(request)
        self.answers.append((request, Committed(self.version)))
