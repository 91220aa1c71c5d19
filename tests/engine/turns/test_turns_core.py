"""Turns of the compiled commit core, request by request: against the plain model, and when the log fails."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from occamdb.engine.commit._commit_core import CHANNEL_STATE_CLOSED
from occamdb.engine.commit.messages import (
    Op,
    OpCode,
    Reply,
    Request,
    RequestFlags,
    Status,
    decode_reply,
    encode_request,
)
from occamdb.engine.disk import failpoints
from occamdb.engine.model.bounds import encode_bounds
from occamdb.engine.model.values import encode_value
from occamdb.ipc.errors import ChannelTimeout

from ...support import turn_model
from ...support.turn_model import TURN_MAX, Committed, Footprint, TurnModel
from ..commit.test_commit_core import DEADLINE_S, RUN_ID, Core, key

KEYS = range(6)
CLIENTS = 4
WRITERS = 3
PROBE = CLIENTS + WRITERS
INT = b"\x07"
LONG_S = 600.0

keys = st.frozensets(st.sampled_from(KEYS), max_size=2)
spans = st.lists(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(KEYS)).map(lambda pair: (min(pair), max(pair) + 1)),
    max_size=1,
).map(tuple)
footprints = st.builds(Footprint, reads=keys, ranges=spans, writes=keys, adds=keys, cleared=spans)


def ops_of(footprint: Footprint, seen: Callable[[int], int] | None) -> tuple[Op, ...]:
    """The operations of a request; without `seen` it has no checks."""
    ops: list[Op] = []
    if seen is not None:
        ops += [Op(OpCode.READ, name(one), argument=seen(one)) for one in sorted(footprint.reads)]
        ops += [Op(OpCode.RANGE, name(start), name(end)) for start, end in footprint.ranges]
    ops += [Op(OpCode.DELETE_RANGE, name(start), name(end)) for start, end in footprint.cleared]
    ops += [Op(OpCode.PUT, name(one), INT) for one in sorted(footprint.writes)]
    ops += [Op(OpCode.ADD, name(one), argument=1) for one in sorted(footprint.adds)]
    return tuple(ops)


def name(number: int) -> bytes:
    return key(f"k{number}")


class Turns(Core):
    """A commit core whose turns last until they are told to end."""

    def __init__(self, folder: Path, channel_count: int, **options: int) -> None:
        super().__init__(folder, channel_count, **options)
        self.core.set_turn_times(LONG_S, -1)
        self.core.pin()  # no tombstone is forgotten, so that no snapshot is refused for its age

    def request(
        self, channel: int, ops: tuple[Op, ...], start: int | None, *, turn: int = 0, flags: int = 0
    ) -> None:
        self.sequences[channel] += 1
        request = Request(
            self.sequences[channel],
            start or 0,
            0,
            ops,
            RUN_ID,
            RequestFlags.BLIND if start is None else RequestFlags(flags),
            turn,
        )
        self.channels[channel].send(encode_request(request), DEADLINE_S)

    def settle(self, probe: int) -> None:
        """Return when the commit thread has served whatever it could.

        An end of a turn is seen in one batch, and what waited for it is served in the next.
        """
        for _ in range(4):
            self.request(probe, (), 0, flags=RequestFlags.JUDGE_ONLY)
            assert self.receive(probe).status is Status.COMMITTED

    def answer(self, channel: int) -> Reply | None:
        """The reply that lies in the ring; None: there is none."""
        try:
            return decode_reply(self.channels[channel].receive(0))
        except ChannelTimeout:
            return None

    def end_turns(self, probe: int) -> None:
        """Let the time of every turn that runs be over."""
        failpoints.set("commit.turn_clock", f"shift:{int(LONG_S * 2000)}@1")
        self.settle(probe)
        failpoints.clear()


class CoreMachine(RuleBasedStateMachine):
    """The compiled core and the model get the same requests, and give the same answers."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="occam-turns-")
        self.core = Turns(Path(self.folder.name), PROBE + 1)
        self.core.run()
        self.model = TurnModel(KEYS, rest=None)
        self.footprints: dict[int, Footprint] = {}
        self.starts: dict[int, int] = {}
        self.tokens = dict.fromkeys(range(CLIENTS), 0)
        self.last_token = 0
        self.busy: dict[int, turn_model.Request] = {}
        self.answered = 0

    def compare(self) -> None:
        """Both have answered the same requests in the same way."""
        self.core.settle(PROBE)
        for request, answer in self.model.answers[self.answered :]:
            if self.busy.get(request.sender) is not request:
                continue
            del self.busy[request.sender]
            reply = self.core.answer(request.sender)
            assert reply is not None, "the model has answered it"
            if isinstance(answer, Committed):
                assert (reply.status, reply.commit_version) == (Status.COMMITTED, answer.version)
                if request.sender in self.tokens:
                    self.tokens[request.sender] = 0
            else:
                assert (reply.status, reply.turn) == (Status.CONFLICT, answer.turn)
        self.answered = len(self.model.answers)
        for sender in self.busy:
            assert self.core.answer(sender) is None, "the model has not answered it"
        assert self.core.core.committed_version == self.model.version
        turns = self.core.core.stats()["turns"]
        assert turns == {name: getattr(self.model, name) for name in ("granted", "waited", "expired")}

    def send(self, channel: int, footprint: Footprint, start: int | None, token: int = 0) -> None:
        request = turn_model.Request(channel, footprint, start, token, token != 0)
        self.busy[channel] = request
        seen = None if start is None else lambda one: self.model.version_at(one, start)
        self.core.request(channel, ops_of(footprint, seen), start, turn=token)
        self.model.submit(request)
        self.compare()

    @rule(client=st.integers(0, CLIENTS - 1), footprint=footprints)
    def begin(self, client: int, footprint: Footprint) -> None:
        if client in self.tokens and client not in self.busy:
            self.starts[client] = self.model.version
            if not self.tokens[client]:
                self.footprints[client] = footprint

    @rule(client=st.integers(0, CLIENTS - 1), grown=st.none() | footprints)
    def commit(self, client: int, grown: Footprint | None) -> None:
        """The end of an attempt, which asks for a turn."""
        if client in self.busy or client not in self.starts:
            return
        if not self.tokens[client]:
            self.last_token += 1
            self.tokens[client] = self.last_token
        footprint = self.footprints[client] if grown is None else grown
        self.footprints[client] = footprint
        self.send(client, footprint, self.starts.pop(client), self.tokens[client])

    @rule(client=st.integers(0, CLIENTS - 1), footprint=footprints, other=st.sampled_from(KEYS))
    def lose(self, client: int, footprint: Footprint, other: int) -> None:
        """An attempt with somebody else's write in the middle."""
        writer = next((one for one in range(CLIENTS, PROBE) if one not in self.busy), None)
        if client not in self.tokens or client in self.busy or writer is None:
            return
        start = self.model.version
        self.send(writer, Footprint(writes=frozenset({other})), None)
        if client not in self.busy:
            self.last_token += 1
            self.tokens[client] = self.tokens[client] or self.last_token
            self.footprints[client] = footprint
            self.send(client, footprint, start, self.tokens[client])

    @rule(writer=st.integers(CLIENTS, PROBE - 1), footprint=footprints, blind=st.booleans())
    def write(self, writer: int, footprint: Footprint, blind: bool) -> None:
        if writer not in self.busy:
            self.send(writer, footprint, None if blind else self.model.version)

    @rule()
    def turns_end(self) -> None:
        """The time of the turns that run is over."""
        if any(place.running for place in self.model.line):
            self.core.end_turns(PROBE)
        self.model.advance(TURN_MAX)
        self.compare()

    @rule(client=st.integers(0, CLIENTS - 1))
    def die(self, client: int) -> None:
        """The worker's channel is closed; a turn of its ends, and its request is served."""
        if client not in self.tokens:
            return
        self.core.core.close_channel(client)
        self.model.die(client)
        self.compare()
        if client not in self.busy:
            self.core.wait(lambda: self.core.core.channel_state(client) == CHANNEL_STATE_CLOSED)
        # Nobody uses this channel from now on. What it has sent is answered.
        self.tokens.pop(client)
        self.starts.pop(client, None)

    def teardown(self) -> None:
        try:
            for _ in range(len(self.model.line) + 1):
                self.turns_end()
            assert not self.model.line
            assert not self.busy
        finally:
            failpoints.clear()
            self.core.stop()
            assert self.core.core.check() is None
            self.core.log.abandon()
            self.folder.cleanup()


TestCore = CoreMachine.TestCase
TestCore.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Turns]:
    made = Turns(tmp_path, 4)
    yield made
    failpoints.clear()
    made.stop()
    assert made.core.check() is None
    made.log.abandon()


def lose(core: Turns, channel: int, *, turn: int) -> None:
    """Send a request that reads k0 as absent, although it is there, and asks for a turn."""
    core.request(channel, (Op(OpCode.READ, name(0)), Op(OpCode.PUT, name(1), INT)), 0, turn=turn)


def write(core: Turns, channel: int, number: int = 0) -> None:
    core.request(channel, (Op(OpCode.PUT, name(number), INT),), None)


def test_a_turn_that_a_failed_batch_would_have_granted_is_not(core: Turns) -> None:
    """It lost to a commit of its batch, which is undone: it is told of the log, and nobody waits for it."""
    failpoints.set("wal.before_write", "errno:ENOSPC@1")
    write(core, 0)
    lose(core, 1, turn=9)
    core.run()
    assert [core.receive(channel).status for channel in (0, 1)] == [Status.LOG_WRITE_ERROR] * 2
    write(core, 0)
    assert core.receive(0).status is Status.COMMITTED
    assert core.core.stats()["turns"] == {"granted": 0, "waited": 0, "expired": 0}


def test_a_request_that_waits_outlives_a_failed_batch(core: Turns) -> None:
    core.run()
    write(core, 0)
    assert core.receive(0).status is Status.COMMITTED
    lose(core, 1, turn=9)
    assert core.receive(1).turn
    write(core, 2)
    core.settle(3)
    assert core.answer(2) is None
    failpoints.set("wal.before_write", "errno:ENOSPC@1")
    write(core, 0, 5)
    assert core.receive(0).status is Status.LOG_WRITE_ERROR
    core.end_turns(3)
    assert core.receive(2).status is Status.COMMITTED


def test_a_bounded_increment_that_waited_is_judged_by_what_is_there_then(core: Turns) -> None:
    """It is refused by the sum that the transaction with the turn left, and its answer names that."""
    core.run()
    write(core, 0)
    assert core.receive(0).status is Status.COMMITTED
    lose(core, 1, turn=9)
    assert core.receive(1).turn
    bounds = encode_bounds(100, None) or b""
    core.request(2, (Op(OpCode.ADD, name(0), bounds, argument=1),), None)
    core.settle(3)
    assert core.answer(2) is None
    core.request(1, (Op(OpCode.PUT, name(0), encode_value(100)),), None, turn=9)
    assert core.receive(1).status is Status.COMMITTED
    reply = core.receive(2)
    assert (reply.status, reply.detail) == (Status.BOUND_REACHED, 0)
    assert [result.value for result in reply.results] == [100]
    assert core.core.check() is None


def test_a_clean_stop_answers_those_who_wait(core: Turns) -> None:
    core.run()
    write(core, 0)
    assert core.receive(0).status is Status.COMMITTED
    lose(core, 1, turn=9)
    assert core.receive(1).turn
    write(core, 2)
    core.settle(3)
    version = core.core.committed_version
    core.stop()
    assert core.receive(2).status is Status.STOPPING
    assert core.channels[2].drained
    assert core.core.committed_version == version


def test_a_turn_is_given_up_by_a_question_without_operations(core: Turns) -> None:
    core.run()
    write(core, 0)
    assert core.receive(0).status is Status.COMMITTED
    lose(core, 1, turn=9)
    assert core.receive(1).turn
    write(core, 2)
    core.settle(3)
    assert core.answer(2) is None
    core.request(1, (), 0, turn=9, flags=RequestFlags.JUDGE_ONLY)
    assert core.receive(1).status is Status.COMMITTED
    assert core.receive(2).status is Status.COMMITTED


def test_the_time_of_a_turn_is_its_own(core: Turns) -> None:
    """Nobody sends anything: the commit thread wakes by itself when it is over."""
    core.core.set_turn_times(0.05, -1)
    core.run()
    write(core, 0)
    assert core.receive(0).status is Status.COMMITTED
    lose(core, 1, turn=9)
    assert core.receive(1).turn
    write(core, 2)
    assert core.receive(2).status is Status.COMMITTED
    assert core.core.stats()["turns"] == {"granted": 1, "waited": 1, "expired": 1}


def test_ranges_are_checked_again_when_the_wait_is_over(core: Turns) -> None:
    """A request that has waited is judged by what is there then, and not by a walk that it made before."""
    core.core.set_range_limits(walk_slice=1)
    core.run()
    for number in range(6):
        write(core, 0, number)
        assert core.receive(0).status is Status.COMMITTED
    version = core.core.committed_version
    lose(core, 1, turn=9)
    assert core.receive(1).turn
    scan = Op(OpCode.RANGE, name(2), name(6))
    core.request(2, (scan, Op(OpCode.PUT, name(0), INT)), version)
    core.wait(lambda: core.core.stats()["turns"]["waited"] == 1)
    write(core, 0, 3)
    assert core.receive(0).status is Status.COMMITTED
    core.end_turns(3)
    assert core.receive(2).status is Status.CONFLICT


@pytest.mark.parametrize("count", [64, 65, 300])
def test_many_ranges_hold_what_lies_in_them(core: Turns, count: int) -> None:
    core.run()
    write(core, 0)
    assert core.receive(0).status is Status.COMMITTED
    ranges = tuple(Op(OpCode.RANGE, key(f"r{i:03}a"), key(f"r{i:03}b")) for i in range(count))
    core.request(1, (Op(OpCode.READ, name(0)), *ranges, Op(OpCode.PUT, name(1), INT)), 0, turn=9)
    assert core.receive(1).turn
    core.request(2, (Op(OpCode.PUT, key(f"r{count - 1:03}a5"), INT),), None)
    core.settle(3)
    assert core.answer(2) is None
    core.request(0, (Op(OpCode.PUT, key("z"), INT),), None)
    assert core.receive(0).status is Status.COMMITTED
    core.end_turns(3)
    assert core.receive(2).status is Status.COMMITTED


def test_a_turn_rests_and_nothing_but_turns_waits_for_that(core: Turns) -> None:
    core.core.set_turn_times(LONG_S, LONG_S)
    core.run()
    write(core, 0)
    assert core.receive(0).status is Status.COMMITTED
    lose(core, 1, turn=9)
    assert core.receive(1).turn
    write(core, 2)
    core.settle(3)
    assert core.answer(2) is None
    core.request(1, (), 0, turn=9, flags=RequestFlags.JUDGE_ONLY)
    assert core.receive(1).status is Status.COMMITTED
    # Its turn is over: the write is done, another one too, but the next turn has to wait ...
    assert core.receive(2).status is Status.COMMITTED
    write(core, 0)
    assert core.receive(0).status is Status.COMMITTED
    lose(core, 1, turn=10)
    core.settle(3)
    assert core.answer(1) is None
    # ... unless it conflicts with nothing.
    core.request(2, (Op(OpCode.CAS, name(5), argument=77), Op(OpCode.PUT, name(5), INT)), 0, turn=11)
    assert core.receive(2).turn
    core.end_turns(3)
    assert core.receive(1).turn


def test_more_turns_than_there_is_room_for_are_refused_and_not_waited_for(core: Turns) -> None:
    """A worker that asks and never comes back, again and again."""
    core.run()
    write(core, 0)
    assert core.receive(0).status is Status.COMMITTED
    granted = 0
    for token in range(1, 1100):
        only = Op(OpCode.PUT, key(f"own{token}"), INT)
        core.request(1, (Op(OpCode.READ, name(0)), only), 0, turn=token)
        granted += core.receive(1).turn
    assert granted == 1024
    with contextlib.suppress(ChannelTimeout):
        core.end_turns(3)
    lose(core, 1, turn=5000)
    assert core.receive(1).turn
