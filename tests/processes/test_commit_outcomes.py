"""One true outcome for every commit: coordinators that die twice, workers out of descriptors, interrupted, forked."""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import occamdb
from occamdb import CommitOutcomeUnknown, Database, RunId
from occamdb.engine.client.link import Link
from occamdb.engine.client.shared_handle import SharedHandle
from occamdb.engine.disk.directory import socket_path
from occamdb.engine.transaction.transaction import TransactionStatus
from occamdb.ipc import segment
from occamdb.ipc.control import ControlClient
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_pid,
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    stop_process,
    wait_until,
)

DIES_WHILE_RECOVERING = ["recovery.begin", "recovery.after_replay", "coordinator.before_ready"]


def commit_without_descriptors(peer: Peer, path: str, run: RunId) -> tuple[str, str]:
    """Commit through a coordinator that dies before it answers, with no descriptor left to find the next one."""
    db = open_database(path)
    txn = db.begin(run)
    txn.put("k", "v")
    peer.say("ready")
    peer.hear()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        txn.commit()
        outcome = "committed"
    except Exception as error:
        outcome = type(error).__name__
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return outcome, txn.status.value


def test_a_sent_commit_is_never_called_aborted_for_want_of_descriptors(
    tmp_path: Path, start: Callable[..., Worker], run: RunId
) -> None:
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "other", 1)
        worker = start(commit_without_descriptors, str(path), run)
        assert worker.hear() == "ready"
        set_coordinator_failpoint(path, "commit.before_reply", "kill")
        worker.say("go")
        assert worker.result() == ("CommitOutcomeUnknown", "validating")
        assert db.get(run, "other") == 1
        wait_until(lambda: db.put(run, "other", 2), what="a coordinator that comes back")
        assert db.get(run, "k") == "v"
    stop_coordinator(path)


@pytest.mark.parametrize("place", DIES_WHILE_RECOVERING)
def test_the_next_coordinator_dies_too(
    place: str, tmp_path: Path, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with a commit on its way, and the one after it while it starts: no user code sees an error."""
    path = tmp_path / "db"
    marker = tmp_path / "died"
    with open_database(path, timeout=60.0) as db:
        db.put(run, "k", 0)
        set_coordinator_failpoint(path, "commit.before_reply", "kill")
        # Whoever is started next dies; the one after it finds the variable gone.
        monkeypatch.setenv("OCCAMDB_FAILPOINTS", f"{place}=kill")
        handle = db.handle
        assert isinstance(handle, SharedHandle)
        spawn = handle.pool._launcher._spawn

        def spawn_and_disarm(report_fd: int) -> None:
            spawn(report_fd)
            if not marker.exists():
                marker.touch()
            else:
                return
            monkeypatch.delenv("OCCAMDB_FAILPOINTS")

        monkeypatch.setattr(handle.pool._launcher, "_spawn", spawn_and_disarm)
        receipt_version = db.put(run, "k", 1)
        assert marker.exists()
        assert db.get_versioned(run, "k") is not None
        found = db.get_versioned(run, "k")
        assert found is not None
        assert (found.value, found.version) == (1, receipt_version)
    stop_coordinator(path)


class Alarmed(Exception):
    """Raised by a signal handler, as timeouts made with `signal.setitimer` are."""


def test_an_exception_of_a_signal_handler_leaves_the_outcome_open(tmp_path: Path, run: RunId) -> None:
    """The request is with a stopped coordinator: it will commit, so "aborted" would be a lie."""
    path = tmp_path / "db"

    def raise_alarm(_number: int, _frame: object) -> None:
        raise Alarmed

    with open_database(path) as db:
        db.put(run, "other", 1)
        pid = coordinator_pid(path)
        txn = db.begin(run)
        txn.put("k", "v")
        before = signal.signal(signal.SIGALRM, raise_alarm)
        stop_process(pid)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Alarmed):
                txn.commit()
        finally:
            os.kill(pid, signal.SIGCONT)
            signal.signal(signal.SIGALRM, before)
        assert txn.status is TransactionStatus.VALIDATING
        wait_until(lambda: db.get(run, "k") == "v", what="the commit")
    stop_coordinator(path)


def test_giving_up_on_a_stopped_coordinator_takes_no_longer_than_the_deadline(
    tmp_path: Path, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is forgotten is dropped, not asked: a goodbye would wait for an answer that does not come."""
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "k", 1)
        handle = db.handle
        assert isinstance(handle, SharedHandle)
        handle._timeout = 0.3
        pid = coordinator_pid(path)
        # A second channel, not the one of the snapshots.
        second = handle.pool.attach(time.monotonic() + 60, session=0)
        handle.pool.idle.append(second)
        calls: list[object] = []
        monkeypatch.setattr(second.client, "call", lambda *arguments: calls.append(arguments))
        stop_process(pid)
        try:
            with pytest.raises(CommitOutcomeUnknown):
                db.put(run, "k", 2)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert calls == []
    stop_coordinator(path)


def test_a_snapshot_begins_on_the_primary_whoever_attaches_first(tmp_path: Path, run: RunId) -> None:
    """After a restart a committing thread may attach between our look at the primary and our own attach."""
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "k", 1)
        handle = db.handle
        assert isinstance(handle, SharedHandle)
        kill_coordinator(path)
        other = open_database(path)  # starts the next one, which supersedes our store
        attach = handle.pool.attach

        def attach_after_another(limit: float, *, session: int) -> object:
            handle.pool.attach = attach  # type: ignore[method-assign]
            thread = threading.Thread(target=lambda: handle.pool.idle.append(attach(limit, session=0)))
            # The lock is ours, and the other thread's adoption needs it: let that one come in between.
            handle.pool.lock.release()
            thread.start()
            thread.join()
            handle.pool.lock.acquire()
            return attach(limit, session=session)

        handle.pool.attach = attach_after_another  # type: ignore[assignment, method-assign]
        attachment = handle.attachment()
        assert handle.pool.primary is not None
        assert attachment is handle.pool.primary.attachment
        other.close()
    stop_coordinator(path)


def test_a_commit_that_meets_a_closed_handle_was_not_sent(tmp_path: Path, run: RunId) -> None:
    path = tmp_path / "db"
    db = open_database(path)
    db.put(run, "k", 1)
    txn = db.begin(run)
    txn.put("k", 2)
    handle = db.handle
    assert isinstance(handle, SharedHandle)
    idle = handle.pool.idle
    kept = list(idle)
    db.close()
    # As if the other thread's `close` came between taking a link and using it.
    handle.pool.idle = kept
    with pytest.raises(occamdb.OccamError) as caught:
        txn.commit()
    assert not isinstance(caught.value, CommitOutcomeUnknown)
    assert txn.status is TransactionStatus.ABORTED
    with open_database(path) as again:
        assert again.get(run, "k") == 1
    stop_coordinator(path)


def test_a_fork_in_a_signal_handler_does_not_share_the_channel(tmp_path: Path, run: RunId) -> None:
    """The child returns from the handler into its parent's commit; the link must not get into its own pool."""
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "k", 0)
        handle = db.handle
        assert isinstance(handle, SharedHandle)
        pid = coordinator_pid(path)
        parent = os.getpid()
        children: list[int] = []

        def fork_here(_number: int, _frame: object) -> None:
            children.append(os.fork())

        before = signal.signal(signal.SIGALRM, fork_here)
        stop_process(pid)
        waker = threading.Timer(0.3, os.kill, (pid, signal.SIGCONT))
        waker.start()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            db.put(run, "k", 1)
        except BaseException:
            if os.getpid() == parent:
                raise
        if os.getpid() != parent:
            os._exit(len(handle.pool.idle))
        signal.signal(signal.SIGALRM, before)
        waker.join()
        assert len(children) == 1
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
        assert db.get(run, "k") == 1
        assert db.put(run, "k", 2) > 0
    stop_coordinator(path)


def test_the_segments_of_links_that_were_dropped_go(tmp_path: Path, run: RunId) -> None:
    path = tmp_path / "db"
    db: Database
    with open_database(path) as db:
        db.put(run, "k", 0)
        handle = db.handle
        assert isinstance(handle, SharedHandle)
        assert handle.pool.primary is not None
        own = handle.pool.primary.terms.channel
        link = handle.pool.attach(time.monotonic() + 60, session=0)
        assert segment.segment_stat(link.terms.channel) is not None
        handle.pool.forget(link)
        wait_until(lambda: segment.segment_stat(link.terms.channel) is None, what="the end of the channel")
        assert segment.segment_stat(own) is not None
    stop_coordinator(path)


def test_a_coordinator_that_cannot_be_seen_is_not_called_dead(tmp_path: Path, run: RunId) -> None:
    """From another pid namespace: a request it did not take yet, it may still take."""
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "k", 1)
        client = ControlClient.connect(socket_path(os.fspath(path)), 60.0)
        link = Link(
            client, os.fspath(path), session=0, owner=1, asked={}, durability="standard", timeout=60.0
        )
        seen, link._coordinator = link._coordinator, None
        pid = coordinator_pid(path)
        stop_process(pid)
        link.channel.send(bytearray(64), 60.0)
        assert link.channel.untaken
        assert not link.died_with_request_untaken()
        kill_coordinator(path)
        assert not link.died_with_request_untaken()
        link._coordinator = seen
        assert link.died_with_request_untaken()
        link.drop()
        db.put(run, "k", 2)
    stop_coordinator(path)
