"""Answers that get lost, come late or come twice, and members that die: each commit has exactly one outcome."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb.engine.commit.messages import Op, OpCode, Reply, Request, Status, encode_request
from occamdb.engine.model.errors import CommitOutcomeUnknown, ServerUnavailable, TransactionTooLarge
from occamdb.engine.remote.etcd import EtcdBackend, open_backend
from occamdb.engine.remote.etcd.gateway import Gateway, Unanswered
from tests.support.etcd_servers import EtcdCluster

from .conftest import BASE, Opening
from .test_model import NAMES, replay, requests_of

Done = list[tuple[Request, Reply]]


class Lossy:
    """Loses answers to transactions: before etcd got them, after it, or so that they arrive late and once more."""

    def __init__(self, gateway: Gateway, seed: int, share: float) -> None:
        self.rng = random.Random(seed)
        self.share = share
        self.lost = 0
        self.late: list[threading.Thread] = []
        self.whole = gateway._roundtrip
        gateway._roundtrip = self.roundtrip  # type: ignore[method-assign]

    def roundtrip(self, method: str, path: str, payload: bytes, deadline: float) -> tuple[int, bytes]:
        if path != "/v3/kv/txn" or self.rng.random() >= self.share:
            return self.whole(method, path, payload, deadline)
        self.lost += 1
        kind = self.rng.randrange(3)
        if kind == 0:
            raise Unanswered("lost on the way there")
        if kind == 1:
            self.whole(method, path, payload, deadline)
            raise Unanswered("lost on the way back")

        def arrive() -> None:
            time.sleep(self.rng.random() * 0.03)  # a slow network, not a way to wait for something
            for _ in range(2):
                self.whole(method, path, payload, time.monotonic() + 5)

        self.late.append(threading.Thread(target=arrive))
        self.late[-1].start()
        raise Unanswered("still on the way")


def commit(backend: EtcdBackend, request: Request, done: Done) -> None:
    """Commit, and note what became of it; an unknown outcome is asked for."""
    try:
        done.append((request, backend.commit(encode_request(request), None).reply))
    except CommitOutcomeUnknown as unknown:
        assert unknown.txn_id is not None
        found = resolve(backend, unknown.txn_id)
        if found is not None:
            done.append((request, Reply(Status.COMMITTED, unknown.txn_id[1], found[0], found[1])))
    except ServerUnavailable:
        pass  # definite: nothing was committed


def resolve(backend: EtcdBackend, name: tuple[int, int]) -> tuple[int, int] | None:
    deadline = time.monotonic() + 30
    while True:
        try:
            return backend.outcome(*name)
        except (CommitOutcomeUnknown, ServerUnavailable):
            assert time.monotonic() < deadline


def puts_of(rng: random.Random, backend: EtcdBackend) -> Iterator[Request]:
    """Like `requests_of`, without results: an outcome that is asked for has none."""
    for request in requests_of(rng, backend):
        ops = tuple(
            Op(op.code, op.key, op.value, op.argument) for op in request.ops if op.code is not OpCode.CAS
        )
        yield Request(0, request.start_version, request.read_time, ops)


def work(backend: EtcdBackend, seed: int, more: Callable[[int], bool], done: Done) -> None:
    requests = puts_of(random.Random(seed), backend)
    for number in itertools.count():
        if not more(number):
            return
        try:
            request = next(requests)
        except ServerUnavailable:
            requests = puts_of(random.Random(seed + number), backend)
            continue
        commit(backend, request, done)


def run(
    backends: list[EtcdBackend], count: int, more: Callable[[int], bool], done: Done
) -> list[threading.Thread]:
    threads = [
        threading.Thread(target=work, args=(backends[index % len(backends)], index, more, done))
        for index in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize("seed", range(4))
def test_lost_answers_do_not_lose_or_repeat_commits(opened: Opening, seed: int) -> None:
    backends = [opened(), opened()]
    lossy = [Lossy(backend._family.client.gateway, seed * 10 + n, 0.15) for n, backend in enumerate(backends)]
    done: Done = []
    for thread in run(backends, 6, lambda number: number < 25, done):
        thread.join()
    for each in lossy:
        each.share = 0.0
        for late in each.late:
            late.join()
    assert sum(each.lost for each in lossy) > 10
    model = replay(done)
    begun = backends[0].begin(NAMES)
    assert begun.version == model.version
    assert {row.key: row.value for row in begun.rows if row} == {k: r.value for k, r in model.state.items()}


def test_a_commit_that_nobody_can_be_asked_about_is_resolved_later(opened: Opening) -> None:
    backend = opened(timeout=0.5, call_timeout=0.1)
    backend.begin()
    gateway: Any = backend._family.client.gateway
    whole = gateway._roundtrip
    for arrives in (True, False):
        held: list[tuple[Any, ...]] = []

        def cut(*call: Any, held: list[tuple[Any, ...]] = held) -> tuple[int, bytes]:
            held.append(call)
            raise Unanswered("cut off")

        version = backend.newest()
        gateway._roundtrip = cut
        request = encode_request(Request(0, version, 0, (Op(OpCode.PUT, NAMES[0], b"\x01"),)))
        with pytest.raises(CommitOutcomeUnknown) as unknown:
            backend.commit(request, None)
        gateway._roundtrip = whole
        sent = next(call for call in held if b"request_put" in call[2])
        if arrives:
            whole(*sent[:3], time.monotonic() + 5)
        assert unknown.value.txn_id is not None
        found = backend.outcome(*unknown.value.txn_id)
        assert (found is not None) == arrives
        whole(*sent[:3], time.monotonic() + 5)  # it may still arrive, and must do nothing
        assert backend.newest() == version + arrives
        assert backend.outcome(*unknown.value.txn_id) == found


@pytest.fixture
def three(tmp_path: Path) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path, 3)
    cluster.start()
    yield cluster
    cluster.stop()


def test_the_leader_is_killed_under_load(three: EtcdCluster) -> None:
    url = three.url(f"kill-{time.time_ns()}")
    backends = [open_backend(url, BASE, timeout=20.0, compact=False) for _ in range(3)]
    done: Done = []
    going = threading.Event()
    going.set()
    threads = run(backends, 6, lambda _number: going.is_set(), done)
    try:
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
            grown(done, 60)
            leader = three.await_leader()
            if number == signal.SIGSTOP:
                leader.signal(number)
                grown(done, 60)
                leader.signal(signal.SIGCONT)
            else:
                leader.kill()
                grown(done, 60)
                leader.start()
    finally:
        going.clear()
        for thread in threads:
            thread.join()
    model = replay(done)
    begun = backends[0].begin(NAMES)
    assert begun.version == model.version
    assert {row.key: row.value for row in begun.rows if row} == {k: r.value for k, r in model.state.items()}
    for backend in backends:
        backend.close()


def grown(done: Done, by: int) -> None:
    """Wait until so many more commits were answered."""
    until, deadline = len(done) + by, time.monotonic() + 60
    while len(done) < until:
        assert time.monotonic() < deadline, f"{len(done)} of {until} commits"
        time.sleep(0.02)


def test_without_a_majority_nothing_is_committed_and_waiting_goes_on(three: EtcdCluster) -> None:
    url = three.url(f"majority-{time.time_ns()}")
    backend = open_backend(url, BASE, timeout=3.0, call_timeout=0.3, compact=False)
    version = backend.newest()
    woken: list[bool] = []
    waiter = threading.Thread(target=lambda: woken.append(backend.wait(version, 60.0)))
    waiter.start()
    for member in three.members[:2]:
        member.kill()
    request = encode_request(Request(0, version, 0, (Op(OpCode.PUT, NAMES[0], b"\x01"),)))
    with pytest.raises((ServerUnavailable, CommitOutcomeUnknown)) as caught:
        backend.commit(request, None)
    assert waiter.is_alive()
    for member in three.members[:2]:
        member.start()
    three.await_leader()
    if isinstance(caught.value, CommitOutcomeUnknown):
        assert caught.value.txn_id is not None
        resolve(backend, caught.value.txn_id)
    if backend.newest() == version:
        backend.commit(request, None)
    waiter.join(30)
    assert woken == [True]
    assert backend.newest() == version + 1
    backend.close()


def test_a_lost_answer_to_what_is_refused_ends_in_the_refusal(opened: Opening) -> None:
    backend = opened()
    version = backend.newest()
    gateway: Any = backend._family.client.gateway
    whole = gateway._roundtrip
    lost: list[bytes] = []

    def lose_first(method: str, path: str, payload: bytes, deadline: float) -> tuple[int, bytes]:
        answer: tuple[int, bytes] = whole(method, path, payload, deadline)
        if b"request_put" in payload and not lost:
            lost.append(payload)
            raise Unanswered("lost on the way back")
        return answer

    gateway._roundtrip = lose_first
    many = tuple(Op(OpCode.PUT, BASE + bytes([n]), b"\x01") for n in range(200))
    with pytest.raises(TransactionTooLarge):
        backend.commit(encode_request(Request(0, version, 0, many)), None)
    assert lost and backend.newest() == version
