"""The control socket: frames, deadlines, death notices, long paths, and peers that misbehave."""

import contextlib
import errno
import os
import resource
import select
import selectors
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb.ipc.control import (
    DESCRIPTORS_KEPT,
    OUTPUT_SIZE_MAX,
    ControlClient,
    ControlListener,
    ServerConnection,
)
from occamdb.ipc.errors import (
    ControlError,
    ControlProtocolError,
    ControlTimeoutError,
    ControlUnavailableError,
)
from occamdb.ipc.frames import FRAME_SIZE_MAX, FrameParser, pack_frame
from tests.support.children import child, wait_until

FOREVER = 30.0
Message = dict[str, Any]
Answer = Callable[[ServerConnection, Message], None]

# ---- frames -----------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.dictionaries(st.text(max_size=10), VALUES, max_size=4)


@given(st.lists(MESSAGES, max_size=5), st.integers(1, 40))
def test_messages_survive_any_chunking(messages: list[Message], chunk: int) -> None:
    stream = b"".join(map(pack_frame, messages))
    parser = FrameParser()
    found: list[Message] = []
    for position in range(0, len(stream), chunk):
        found += parser.feed(stream[position : position + chunk])
    assert found == messages


@given(st.binary(max_size=200))
def test_junk_is_refused_or_awaits_more(junk: bytes) -> None:
    parser = FrameParser()
    with contextlib.suppress(ControlProtocolError):
        for message in parser.feed(junk):
            assert isinstance(message, dict) and all(isinstance(key, str) for key in message)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80\x80",
        msgpack.packb([1]),
        msgpack.packb(7),
        b"\x91" * 5000,
        b"\x81\xa1\xff\x01",
        msgpack.packb({b"key": 1}),
        msgpack.packb({1: 2}),
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1k\xdb\xff\xff\xff\xff",
    ],
)
def test_a_frame_that_holds_no_dict_is_refused(body: bytes) -> None:
    with pytest.raises(ControlProtocolError):
        FrameParser().feed(struct.pack("<I", len(body)) + body)


def test_a_frame_over_the_limit_is_refused_by_its_size_alone() -> None:
    with pytest.raises(ControlProtocolError, match=str(FRAME_SIZE_MAX)):
        FrameParser().feed(struct.pack("<I", FRAME_SIZE_MAX + 1))
    with pytest.raises(ControlProtocolError, match="over the limit"):
        pack_frame({"x": b"x" * FRAME_SIZE_MAX})


# ---- sockets ----------------------------------------------------------------------------------------


class Server:
    """A selector loop in a thread, as the coordinator's; `answer` is called for each message."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.listener = ControlListener(path)
        self.answer = answer
        self.ended: list[str] = []
        self.connections: set[ServerConnection] = set()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                for key, events in selector.select(FOREVER):
                    if key.fileobj is self._woken:
                        return
                    if key.fileobj is self.listener:
                        self._accept(selector)
                    else:
                        self._serve(selector, key.data, events)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        connection = self.listener.accept()
        if connection is not None:
            self.connections.add(connection)
            selector.register(connection, selectors.EVENT_READ, connection)

    def _serve(self, selector: selectors.BaseSelector, connection: ServerConnection, events: int) -> None:
        reason = ""
        try:
            if events & selectors.EVENT_WRITE:
                connection.flush()
            if events & selectors.EVENT_READ:
                for message in connection.receive():
                    self.answer(connection, message)
        except ControlProtocolError:
            reason = "protocol"
        if connection.eof:
            reason = "eof"
        if reason:
            selector.unregister(connection)
            self.connections.discard(connection)
            connection.close()
            self.ended.append(reason)
        else:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_write else 0)
            selector.modify(connection, wanted, connection)

    def close(self) -> None:
        self._wake.send(b"x")
        self._thread.join(FOREVER)
        for connection in self.connections:
            connection.close()
        self.listener.close()
        self._wake.close()
        self._woken.close()


def echo(connection: ServerConnection, message: Message) -> None:
    connection.queue({"echo": message, "pid": connection.pid, "uid": connection.uid})


@contextlib.contextmanager
def serving(path: Path, answer: Answer = echo) -> Iterator[Server]:
    server = Server(path, answer)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_calls_are_answered_in_turn(path: Path) -> None:
    with serving(path), ControlClient.connect(path, FOREVER) as client:
        for number in range(50):
            message = {"number": number, "bytes": bytes(number * 1000)}
            reply = client.call(message, FOREVER)
            assert reply == {"echo": message, "pid": os.getpid(), "uid": os.geteuid()}
        assert client.peer_pid == os.getpid()
        assert not client.peer_gone() and client.fileno() >= 0
        assert not os.get_inheritable(client.fileno())


def test_a_frame_of_the_largest_size_goes_through(path: Path) -> None:
    payload = b"x" * (FRAME_SIZE_MAX - 1000)
    with serving(path), ControlClient.connect(path, FOREVER) as client:
        assert client.call({"payload": payload}, FOREVER)["echo"] == {"payload": payload}
        with pytest.raises(ControlProtocolError):
            client.call({"payload": payload + b"y" * 2000}, FOREVER)
        assert client.call({}, FOREVER)["echo"] == {}, "a message refused before sending costs nothing"


@pytest.mark.parametrize("length", [100, 107, 108, 250, 3000])
def test_paths_of_any_length_work(tmp_path: Path, length: int) -> None:
    directory = str(tmp_path)
    while len(directory) + 10 < length:
        directory += "/" + "d" * min(200, length - len(directory) - 10)
    os.makedirs(directory, exist_ok=True)
    path = Path(directory, "control.sock"[: max(4, length - len(directory) - 1)])
    with serving(path), ControlClient.connect(path, FOREVER) as client:
        assert client.call({"a": 1}, FOREVER)["echo"] == {"a": 1}
    assert not path.exists()


def test_a_name_too_long_for_any_socket_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="too long"):
        ControlListener(tmp_path / ("n" * 200))


def test_the_socket_is_private(path: Path) -> None:
    before = os.umask(0)
    try:
        with serving(path) as server:
            found = os.lstat(path)
            assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
            assert not os.get_inheritable(server.listener.fileno())
    finally:
        os.umask(before)


def test_nobody_listens(path: Path) -> None:
    with pytest.raises(ControlUnavailableError) as caught:
        ControlClient.connect(path, 1.0)
    assert caught.value.retryable and caught.value.details["errno"] == errno.ENOENT
    ControlListener(path)._socket.close()
    with pytest.raises(ControlUnavailableError) as caught:
        ControlClient.connect(path, 1.0)
    assert caught.value.details["errno"] == errno.ECONNREFUSED


def test_a_dead_coordinators_socket_is_replaced_and_only_the_own_one_removed(path: Path) -> None:
    first = ControlListener(path)
    second = ControlListener(path)
    first.close()
    assert path.exists(), "the name is the second one's"
    second.close()
    second.close()
    assert not path.exists()


def test_something_else_in_the_way_is_left_alone(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(ControlError, match="in the way"):
        ControlListener(path)
    assert path.read_text() == "mine"
    with pytest.raises(ControlError, match="cannot listen"):
        ControlListener(path.parent / "absent" / "x.sock")


def test_a_late_reply_is_never_taken_for_anothers(path: Path) -> None:
    release = threading.Event()

    def late(connection: ServerConnection, message: Message) -> None:
        release.wait(FOREVER)
        connection.queue({"late": True})

    with serving(path, late), ControlClient.connect(path, FOREVER) as client:
        with pytest.raises(ControlTimeoutError):
            client.call({}, 0.02)
        release.set()
        with pytest.raises(ControlUnavailableError):
            client.call({}, FOREVER)
        assert client.peer_gone() and client.fileno() == -1


def test_a_handler_that_raises_closes_the_connection(path: Path) -> None:
    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with serving(path, lambda connection, message: None), ControlClient.connect(path, FOREVER) as client:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(KeyboardInterrupt):
                client.call({}, FOREVER)
            assert client.fileno() == -1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_death_of_either_side_is_seen(path: Path) -> None:
    with serving(path) as server:

        def body() -> None:
            client = ControlClient.connect(path, FOREVER)
            client.call({}, FOREVER)
            signal.pause()

        with child(body, check=False) as worker:
            wait_until(lambda: server.connections)
            assert [connection.pid for connection in server.connections] == [worker.pid]
            worker.kill()
        wait_until(lambda: server.ended == ["eof"])

    listener = ControlListener(path)
    with ControlClient.connect(path, FOREVER) as client:
        wait_until(lambda: select.select([listener], [], [], 0)[0])
        connection = listener.accept()
        assert connection is not None and not client.peer_gone()
        connection.queue({"unread": 1})
        connection.close()
        listener.close()
        assert client.peer_gone(), "also with bytes still unread"
        with pytest.raises(ControlUnavailableError):
            client.call({}, FOREVER)
            client.call({}, FOREVER)


def test_a_peer_that_sends_junk_is_cut_off_alone(path: Path) -> None:
    with serving(path) as server, ControlClient.connect(path, FOREVER) as good:
        with socket.socket(socket.AF_UNIX) as bad:
            bad.connect(str(path))
            bad.sendall(b"\xff" * 100)
            bad.settimeout(FOREVER)
            with contextlib.suppress(ConnectionResetError):
                assert bad.recv(10) == b""
        wait_until(lambda: server.ended)
        assert server.ended == ["protocol"]
        assert good.call({"still": "here"}, FOREVER)["echo"] == {"still": "here"}


def test_a_peer_that_never_reads_is_cut_off() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    connection = ServerConnection(ours)
    chunk = {"x": b"x" * (FRAME_SIZE_MAX // 2)}
    queued = 0
    with pytest.raises(ControlProtocolError, match="does not read"):
        while queued <= 2 * OUTPUT_SIZE_MAX:
            connection.queue(chunk)
            queued += FRAME_SIZE_MAX // 2
    assert connection.wants_write
    theirs.close()
    connection.flush()
    assert connection.eof and not connection.wants_write
    connection.close()


def test_a_listener_without_descriptors_refuses_and_recovers(path: Path) -> None:
    told = {"ok": False, "message": "no room"}

    def body() -> None:
        listener = ControlListener(path, lambda: told)
        limit = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        clients[0].connect(str(path))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
        held = []
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        assert listener.accept() is None
        clients[0].settimeout(FOREVER)
        assert clients[0].recv(100) == pack_frame(told), "the peer was told why, not left waiting"
        assert clients[0].recv(1) == b""
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        clients[1].connect(str(path))
        connection = listener.accept()
        assert connection is not None and connection.pid == os.getpid()
        assert listener.accept() is None, "nobody waits"
        listener.close()

    with child(body):
        pass


def test_a_full_queue_of_connections_is_waited_for_and_then_reported(path: Path) -> None:
    listener = ControlListener(path)
    listener._socket.listen(1)
    clients = []
    with pytest.raises(ControlUnavailableError):
        for _ in range(10):
            clients.append(ControlClient.connect(path, 0.05))
    assert clients
    for client in clients:
        client.close()
    listener.close()


def test_a_client_hears_why_it_was_turned_away(path: Path) -> None:
    """Also when the listener closed the connection before the client had sent a byte."""
    told = {"ok": False, "message": "no room"}

    def body() -> None:
        listener = ControlListener(path, lambda: told)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = ControlClient.connect(path, FOREVER)
        # The next descriptor is among those that are kept.
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + DESCRIPTORS_KEPT, before[1]))
        assert listener.accept() is None
        assert client.call({"op": "attach"}, FOREVER) == told
        with pytest.raises(ControlUnavailableError):
            client.call({"op": "attach"}, FOREVER)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        with ControlClient.connect(path, FOREVER):
            connection = listener.accept()
            assert connection is not None
            connection.close()
        listener.close()

    with child(body):
        pass


def test_a_closed_connection_ends_although_a_forked_child_has_a_copy(path: Path) -> None:
    """As when another thread forks in the middle of a connect: the child knows of no client to close."""
    with serving(path) as server:
        client = ControlClient.connect(path, FOREVER)
        client.call({}, FOREVER)
        with child(signal.pause, check=False) as process:
            client.close()
            wait_until(lambda: server.ended == ["eof"])
            process.kill()


def test_a_forked_child_closes_its_copy_alone(path: Path) -> None:
    with serving(path), ControlClient.connect(path, FOREVER) as client:
        with child(client.close):
            pass
        assert client.call({"still": "there"}, FOREVER)["echo"] == {"still": "there"}
