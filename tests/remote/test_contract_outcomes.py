"""Rule 6 of the contract: a request has one outcome, whatever is lost between a client and the server."""

import threading
import time

import pytest

from occamdb.engine.commit.messages import Status
from occamdb.engine.model.errors import CommitOutcomeUnknown, ServerUnavailable, TransactionTimeout
from occamdb.engine.remote.backend import Backend
from occamdb.stress.clusters import Cluster, Proxy
from occamdb.stress.clusters.proxy import Direction
from tests.support.backends import Kind, adding, commit, decoded, key_in, putting
from tests.support.processes import wait_until

CHUNKS_MAX = 40


@pytest.fixture
def proxy(kind: Kind, request: pytest.FixtureRequest) -> Proxy:
    """What every connection to the server goes through."""
    if kind.name == "dict":
        pytest.skip("nothing is lost on the way to a dict")
    cluster: Cluster = request.getfixturevalue(kind.name)
    return cluster.servers["s1"].proxy


def value_of(backend: Backend, key: bytes) -> int:
    return decoded(backend.begin([key]).rows[0]) or 0


@pytest.mark.parametrize("partial", [False, True], ids=["whole", "half"])
@pytest.mark.parametrize("direction", ["request", "reply"])
def test_a_chunk_lost_at_every_point_of_a_commit(
    kind: Kind, proxy: Proxy, base: bytes, direction: Direction, partial: bool
) -> None:
    backend, observer, key = kind.open(base), kind.open(base), key_in(base, "n")
    commit(backend, putting(key, 0))
    expected = lost = 0
    for skip in range(CHUNKS_MAX):
        drop = proxy.drop_next(direction, skip=skip, partial=partial)
        try:
            sent = commit(backend, adding(key, 1))
            expected += 1
            reply = sent.reply
            assert (reply.status, reply.results[0].value) == (Status.COMMITTED, expected)
            found = backend.outcome(sent.outcome.session, sent.outcome.sequence)
            assert found == (reply.commit_version, reply.committed_at)
        except ServerUnavailable:
            pass  # nothing was committed: the value says so
        finally:
            fired = drop.fired.is_set()
            proxy.heal()
        lost += fired
        assert value_of(observer, key) == expected
        if not fired:
            break
    assert lost >= 1, "the proxy never lost anything of a commit"


def test_a_reply_lost_again_and_again(kind: Kind, proxy: Proxy, base: bytes) -> None:
    backend, key = kind.open(base), key_in(base, "n")
    commit(backend, putting(key, 0))
    drops = [proxy.drop_next("reply", partial=bool(number % 2)) for number in range(4)]
    try:
        reply = commit(backend, adding(key, 1)).reply
        assert reply.results[0].value == 1 and drops[0].fired.is_set()
    finally:
        proxy.heal()
    assert value_of(backend, key) == 1


def test_a_request_that_arrives_late_has_the_outcome_that_was_told(
    kind: Kind, proxy: Proxy, base: bytes
) -> None:
    """The proxy holds the request back, the client gives up, and then it is delivered."""
    backend, observer, key = kind.open(base), kind.open(base), key_in(base, "n")
    commit(backend, putting(key, 0))
    expected = 0
    for _ in range(5):
        proxy.cut()
        began = time.monotonic()
        unknown: CommitOutcomeUnknown | None = None
        try:
            commit(backend, adding(key, 1), deadline=time.monotonic() + 0.5)
            pytest.fail("committed although the server was cut off")
        except CommitOutcomeUnknown as error:
            unknown = error
        except (ServerUnavailable, TransactionTimeout):
            pass
        finally:
            proxy.heal()
        assert time.monotonic() - began < 20
        if unknown is not None:
            assert unknown.txn_id is not None
            found = backend.outcome(*unknown.txn_id)
            expected += found is not None
            for _ in range(10):
                assert backend.outcome(*unknown.txn_id) == found
                assert value_of(observer, key) == expected
                observer.wait(observer.newest(), 0.05)
        assert value_of(observer, key) == expected
        reply = commit(backend, adding(key, 1)).reply
        expected += 1
        assert reply.results[0].value == expected


def test_threads_whose_connections_break(kind: Kind, proxy: Proxy, base: bytes) -> None:
    """Commits that travel together have one outcome each, too."""
    backend, observer, key = kind.open(base), kind.open(base), key_in(base, "n")
    commit(backend, putting(key, 0))
    threads, each = 8, 25
    acknowledged: list[int] = []
    refused: list[Exception] = []
    done = threading.Event()

    def add() -> None:
        for _ in range(each):
            try:
                acknowledged.append(commit(backend, adding(key, 1)).reply.results[0].value)
            except ServerUnavailable as error:
                refused.append(error)

    def break_connections() -> None:
        # Bounded, and with pauses in which a connection can be made: a dozen chunks.
        for number in range(1, 31):
            if done.wait(0.1):
                return
            if number % 4 == 0:
                proxy.reset()
            else:
                proxy.drop_next("reply", skip=number % 3, partial=number % 2 == 0)

    workers = [threading.Thread(target=add) for _ in range(threads)]
    breaker = threading.Thread(target=break_connections)
    for thread in [*workers, breaker]:
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    breaker.join()
    proxy.heal()
    assert len(acknowledged) + len(refused) == threads * each
    assert sorted(acknowledged) == list(range(1, len(acknowledged) + 1))
    assert value_of(observer, key) == len(acknowledged)


def test_a_server_that_is_away_is_reported_in_time_and_found_again(
    kind: Kind, proxy: Proxy, base: bytes
) -> None:
    backend, key = kind.open(base, timeout=2.0), key_in(base, "n")
    commit(backend, putting(key, 7))
    proxy.refuse()
    try:
        began = time.monotonic()
        with pytest.raises(ServerUnavailable):
            backend.begin([key])
        with pytest.raises((ServerUnavailable, CommitOutcomeUnknown)):
            commit(backend, adding(key, 1), deadline=time.monotonic() + 1.0)
        assert time.monotonic() - began < 30
    finally:
        proxy.heal()
    wait_until(lambda: value_of(backend, key) in (7, 8))
    before = value_of(backend, key)
    assert commit(backend, adding(key, 1)).reply.results[0].value == before + 1
