"""What turns promise, shown on the plain model of them: bounded attempts, bounded waits, a legal order."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ...support.turn_model import (
    BACK,
    QUANTUM,
    REST_FACTOR,
    TURN_MAX,
    Committed,
    Footprint,
    Lost,
    Request,
    TurnModel,
)

KEYS = range(8)
CLIENTS = 5
TURN_AFTER = 3

keys = st.frozensets(st.sampled_from(KEYS), max_size=3)
spans = st.lists(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(KEYS)).map(lambda pair: (min(pair), max(pair) + 1)),
    max_size=1,
).map(tuple)
footprints = st.builds(Footprint, reads=keys, ranges=spans, writes=keys, adds=keys, cleared=spans)


@dataclass
class Client:
    """A transaction and its attempts."""

    token: int
    footprint: Footprint
    allowed: int
    attempts: int = 0
    begun_at: int | None = None
    start: int = 0
    sent: Request | None = None
    asked: Footprint | None = None
    had_turn: bool = False
    too_long: bool = False


@dataclass
class Sent:
    """A request, and for how long it may wait."""

    request: Request
    at: int
    longest: int


@dataclass
class World:
    """The model, with its clients and what they were promised."""

    model: TurnModel = field(default_factory=lambda: TurnModel(KEYS))
    clients: dict[int, Client] = field(default_factory=dict)
    unanswered: list[Sent] = field(default_factory=list)
    answered: int = 0


class TurnMachine(RuleBasedStateMachine):
    """Clients that retry, beside writers that never lose, with deaths and restarts in between."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.tokens = 0
        self.turn_after = TURN_AFTER

    @property
    def model(self) -> TurnModel:
        return self.world.model

    @initialize(turn_after=st.integers(1, TURN_AFTER), size=st.integers(2, CLIENTS), data=st.data())
    def some_clients(self, turn_after: int, size: int, data: st.DataObject) -> None:
        self.turn_after = turn_after
        for index in range(size):
            self._new_client(index, data.draw(footprints))

    def _new_client(self, index: int, footprint: Footprint) -> None:
        self.tokens += 1
        self.world.clients[index] = Client(self.tokens, footprint, self.turn_after + 1)

    def _send(self, request: Request) -> None:
        ahead = sum(not place.waiting or place.request.token != 0 for place in self.model.line)
        self.world.unanswered.append(Sent(request, self.model.now, (1 + REST_FACTOR) * ahead * TURN_MAX))
        self.model.submit(request)
        self._collect()

    def _collect(self) -> None:
        """Take the answers, and hold each against what was promised."""
        for request, answer in self.model.answers[self.world.answered :]:
            (sent,) = [one for one in self.world.unanswered if one.request is request]
            self.world.unanswered.remove(sent)
            assert self.model.now - sent.at <= sent.longest, "it waited for longer than the turns before it"
            client = self.world.clients.get(request.sender)
            if client is None or client.sent is not request:
                continue
            client.sent = None
            if isinstance(answer, Committed):
                assert client.too_long or client.attempts <= client.allowed, "it needed too many attempts"
                self._new_client(request.sender, client.footprint)
            elif answer.turn:
                client.asked, client.had_turn = request.footprint, True
                client.allowed = min(client.allowed, client.attempts + 1)
            else:
                assert not request.asks, "it lost often enough, and has no turn"
        self.world.answered = len(self.model.answers)

    @rule(index=st.integers(0, CLIENTS - 1))
    def begin(self, index: int) -> None:
        self._begin(index)

    def _begin(self, index: int) -> None:
        client = self.world.clients.get(index)
        if client is None or client.begun_at is not None or client.sent is not None:
            return
        client.attempts += 1
        client.begun_at, client.start = self.model.now, self.model.version

    @rule(index=st.integers(0, CLIENTS - 1), grown=st.none() | footprints)
    def commit(self, index: int, grown: Footprint | None) -> None:
        """The end of an attempt. Its footprint is the one of the attempt before, or another one."""
        self._commit(index, grown)

    def _commit(self, index: int, grown: Footprint | None) -> None:
        client = self.world.clients.get(index)
        if client is None or client.begun_at is None:
            return
        if grown is not None:
            client.footprint = grown
        if client.asked is not None and not client.footprint.within(client.asked, KEYS):
            client.allowed += 1
        client.begun_at, client.asked = None, None
        asks = client.attempts >= self.turn_after or client.had_turn
        client.sent = Request(index, client.footprint, client.start, client.token, asks, not asks)
        self._send(client.sent)

    @rule(index=st.integers(0, CLIENTS - 1), key=st.sampled_from(KEYS))
    def try_and_be_beaten(self, index: int, key: int) -> None:
        """A whole attempt, with somebody else's write in the middle: how turns come about."""
        self._begin(index)
        self._send(Request(-1, Footprint(writes=frozenset({key})), None))
        self._commit(index, None)

    @rule(footprint=footprints)
    def write(self, footprint: Footprint) -> None:
        """A blind write: it never loses."""
        self._send(Request(-1, footprint, None))

    @rule(footprint=footprints)
    def write_at_once(self, footprint: Footprint) -> None:
        """A short transaction of somebody who never asks."""
        self._send(Request(-1, footprint, self.model.version))

    @rule(time=st.integers(1, TURN_MAX // 2))
    def time_passes(self, time: int) -> None:
        for client in self.world.clients.values():
            if client.asked is not None and any(
                place.ends is not None
                and place.request.token == client.token
                and place.ends <= self.model.now + time
                for place in self.model.line
            ):
                client.too_long = True  # it is not shorter than a turn: nothing is promised to it
        self._advance(time)

    def _advance(self, time: int) -> None:
        """Step by step, so that an answer is seen when it is given."""
        for _ in range(time):
            self.model.advance(1)
            self._collect()

    @rule(index=st.integers(0, CLIENTS - 1), footprint=footprints)
    def die(self, index: int, footprint: Footprint) -> None:
        if index not in self.world.clients:
            return
        self._new_client(index, footprint)
        self.model.die(index)
        self._collect()

    @precondition(lambda self: self.model.line)
    @rule()
    def restart(self) -> None:
        again = self.model.restart()
        for client in self.world.clients.values():
            client.allowed += 1
            client.asked = None
        for request in again:
            (sent,) = [one for one in self.world.unanswered if one.request is request]
            self.world.unanswered.remove(sent)
            self._send(request)

    @invariant()
    def running_turns_are_apart(self) -> None:
        running = [place.request.footprint for place in self.model.line if place.running]
        for one in running:
            assert not any(one.breaks(other) for other in running if other is not one)

    @invariant()
    def the_oldest_turn_runs_or_waits_for_rests(self) -> None:
        line = [place for place in self.model.line if not place.rests]
        turns = [place for place in line if place.running or place.request.asks]
        if turns and not turns[0].running:
            assert len(line) < len(self.model.line), "it waits for nobody"
        assert turns or not line, "somebody waits for nobody"

    @invariant()
    def nothing_waits_for_too_long(self) -> None:
        for sent in self.world.unanswered:
            assert self.model.now - sent.at <= sent.longest

    def teardown(self) -> None:
        """When no more requests come, everything is answered, and the order is a legal one."""
        self._advance((1 + REST_FACTOR) * TURN_MAX * (len(self.model.line) + 1))
        assert not self.world.unanswered
        assert not self.model.line
        assert_legal(self.model)


def assert_legal(model: TurnModel) -> None:
    """Replay the commits: each has the next version, and nothing that it guards was written since it began."""
    plain = TurnModel(KEYS)
    committed = [(request, answer) for request, answer in model.answers if isinstance(answer, Committed)]
    assert [request for request, _ in committed] == model.commits
    for number, (request, answer) in enumerate(committed, start=1):
        assert answer.version == number
        assert not plain.has_conflict(request)
        plain.submit(Request(request.sender, request.footprint, None))
    assert plain.version == model.version


TestTurns = TurnMachine.TestCase
TestTurns.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def _transaction(model: TurnModel, number: int, *, asks: bool, start: int | None = None) -> Request:
    start = model.version if start is None else start
    return Request(number, Footprint(reads=frozenset({0})), start, number, asks)


def test_a_turn_holds_up_what_would_break_it_and_nothing_else() -> None:
    model = TurnModel(KEYS)
    model.submit(Request(9, Footprint(writes=frozenset({0})), None))
    model.submit(_transaction(model, 1, asks=True, start=0))
    assert model.answers[-1][1] == Lost(turn=True)
    model.submit(Request(9, Footprint(writes=frozenset({0})), None))
    model.submit(Request(8, Footprint(writes=frozenset({1})), None))
    assert [request.sender for request in model.commits] == [9, 8]
    model.submit(_transaction(model, 1, asks=True))
    assert [request.sender for request in model.commits] == [9, 8, 1]
    model.advance(BACK)
    assert [request.sender for request in model.commits] == [9, 8, 1, 9]


def test_a_holder_that_never_comes_back_costs_one_turn() -> None:
    model = TurnModel(KEYS)
    model.submit(Request(9, Footprint(writes=frozenset({0})), None))
    model.submit(_transaction(model, 1, asks=True, start=0))
    model.submit(Request(9, Footprint(writes=frozenset({0})), None))
    model.advance(TURN_MAX - 1)
    assert len(model.commits) == 1
    model.advance(1)
    assert len(model.commits) == 2 and model.expired == 1


def test_one_long_transaction_takes_at_most_its_share_of_the_time() -> None:
    """Of `turn_after` + 1 attempts one holds the others up."""
    model = TurnModel(KEYS)
    held_up = total = commits = 0
    for number in range(1, 101):
        for attempt in range(1, TURN_AFTER + 2):
            start = model.version
            for _ in range(5):
                writer = Request(-1, Footprint(writes=frozenset({0})), None)
                before = len(model.commits)
                model.submit(writer)
                held_up += model.commits[before:] != [writer]
                total += 1
                model.advance(1)
            asks = attempt >= TURN_AFTER
            model.submit(_transaction(model, number, asks=asks, start=start))
            if any(request.sender == number for request in model.commits):
                commits += 1
                break
        else:
            raise AssertionError("it needed too many attempts")
    assert commits == 100
    assert held_up / total <= 1 / (TURN_AFTER + 1)


def test_turns_take_at_most_a_quarter_of_the_time_however_many_want_one() -> None:
    """Five transactions that hold each turn for as long as they may, beside a writer of their key."""
    model = TurnModel(KEYS)
    model.submit(Request(9, Footprint(writes=frozenset({0})), None))
    both = Footprint(reads=frozenset({0}), writes=frozenset({0}))
    for number in range(5):
        model.submit(Request(number, both, 0, number + 1, True))
    held_up = []
    for _ in range(5 * (1 + REST_FACTOR) * TURN_MAX):
        before = len(model.commits)
        model.submit(Request(-1, Footprint(writes=frozenset({0})), None))
        held_up.append(len(model.commits) == before)
        model.advance(1)
    assert model.granted == 5
    assert sum(held_up) == 5 * TURN_MAX
    period = (1 + REST_FACTOR) * TURN_MAX
    assert all(sum(held_up[at : at + period]) <= TURN_MAX for at in range(len(held_up) - period))


BOTH = Footprint(reads=frozenset({0}), writes=frozenset({0}))


def _fight(model: TurnModel, *senders: int) -> list[Request]:
    """Each of them reads and writes key 0 and has read too early; the first one asks. Returns their requests."""
    model.submit(Request(99, BOTH, None))
    requests = [Request(one, BOTH, 0, 100 + one, one == senders[0], one != senders[0]) for one in senders]
    for request in requests:
        model.submit(request)
    return requests


def _next(model: TurnModel, sender: int, token: int) -> bool:
    """A further transaction of this sender; whether it has committed at once."""
    request = Request(sender, BOTH, model.version, token, False, True)
    model.submit(request)
    return request in model.commits


def test_a_turn_is_kept_for_a_quantum_and_then_the_next_in_the_line_has_one() -> None:
    model = TurnModel(KEYS)
    _, second, third = _fight(model, 1, 2, 3)
    assert _next(model, 1, 101), "it has the turn"
    assert _next(model, 1, 201) and _next(model, 1, 202), "it keeps the turn"
    for moment in range(1, QUANTUM):
        model.advance(1)
        assert _next(model, 1, 202 + moment)
    assert [request.sender for request in model.commits] == [99] + [1] * (3 + QUANTUM - 1), "the others wait"
    model.advance(1)
    assert model.answers[-1] == (second, Lost(turn=True))
    assert not _next(model, 1, 300), "its quantum is over"
    assert _next(model, 2, 102) and _next(model, 2, 205)
    model.advance(QUANTUM)
    assert model.answers[-1] == (third, Lost(turn=True))
    assert model.expired == 0


def test_a_kept_turn_ends_when_its_holder_pauses_or_does_something_else() -> None:
    for away in (True, False):
        model = TurnModel(KEYS)
        _, second = _fight(model, 1, 2)
        assert _next(model, 1, 101)
        if away:
            model.advance(BACK)
        else:
            model.submit(Request(1, Footprint(writes=frozenset({1})), None))
        assert (second, Lost(turn=True)) in model.answers


def test_after_a_kept_turn_that_held_up_a_plain_write_no_turn_starts_for_a_while() -> None:
    """Writers that never ask have the key for three times as long as the turn had it."""
    model = TurnModel(KEYS)
    _, second = _fight(model, 1, 2)
    assert _next(model, 1, 101)
    write = Request(9, Footprint(writes=frozenset({0})), None)
    model.submit(write)
    assert write not in model.commits
    model.advance(BACK)
    assert write in model.commits
    assert model.answers[-1] == (second, Lost(turn=False)), (
        "it is not patient for nothing, but has to try again"
    )
    model.submit(Request(1, BOTH, 0, 301, True))
    model.advance(REST_FACTOR * BACK - 1)
    assert model.granted == 1
    model.advance(1)
    assert model.granted == 2


def test_fighting_transactions_share_a_key_evenly_and_lose_once_in_a_quantum() -> None:
    """Five senders that never pause: each has the same number of quanta, and one lost attempt for each of them."""
    model = TurnModel(KEYS)
    senders = range(1, 6)
    _fight(model, *senders)
    token, done, attempts = 1000, dict.fromkeys(senders, 0), 0
    tokens: dict[int, int] = {}
    for _ in range(20 * QUANTUM * len(senders)):
        for sender in senders:
            if any(place.waiting and place.request.sender == sender for place in model.line):
                continue
            lost = next(
                (
                    request.token
                    for request, answer in reversed(model.answers)
                    if request.sender == sender
                    and (answer == Lost(turn=True) or isinstance(answer, Committed))
                ),
                0,
            )
            token += 1
            tokens[sender] = (
                lost if model.answers and lost in {place.request.token for place in model.line} else token
            )
            attempts += 1
            done[sender] += _next(model, sender, tokens[sender])
        model.advance(1)
    assert min(done.values()) > 0
    assert max(done.values()) <= 1.5 * min(done.values())
    assert attempts <= sum(done.values()) + model.granted + len(senders)
