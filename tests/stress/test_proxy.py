"""The proxy before a server: what arrives is a prefix of what was sent, and each fault does what it says."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from occamdb.stress.clusters.proxy import Direction, Proxy
from tests.support.processes import wait_until


class EchoServer:
    """Answers every line with the same line."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.received: list[bytes] = []
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self.answer, args=(connection,), daemon=True))
            self.threads[-1].start()

    def answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    self.received.append(data)
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def server() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", proxy.port), timeout=10))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


Connect = Callable[[], socket.socket]


def ask(connection: socket.socket, data: bytes) -> bytes:
    """Send, and read until as much has come back or the connection has ended."""
    connection.sendall(data)
    found = b""
    while len(found) < len(data) and (part := connection.recv(1 << 16)):
        found += part
    return found


def ends(connection: socket.socket) -> bool:
    """Whether the connection ends: in order, or by a reset."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_bytes_pass_as_they_are_on_many_connections(connect: Connect) -> None:
    connections = [connect() for _ in range(8)]
    for number, connection in enumerate(connections):
        assert ask(connection, b"%d" % number * 3) == b"%d" % number * 3
    large = bytes(range(256)) * 40_000  # ten megabytes: more than every buffer on the way
    sender = threading.Thread(target=connections[0].sendall, args=(large,))
    sender.start()
    found = bytearray()
    while len(found) < len(large):
        part = connections[0].recv(1 << 20)
        assert part
        found += part
    sender.join()
    assert bytes(found) == large


def test_the_end_of_a_stream_passes_in_its_direction_alone(
    server: EchoServer, proxy: Proxy, connect: Connect
) -> None:
    connection = connect()
    connection.sendall(b"last words")
    connection.shutdown(socket.SHUT_WR)
    found = b""
    while part := connection.recv(100):
        found += part
    assert found == b"last words"
    wait_until(lambda: proxy.connections == 0)  # both directions have ended


def test_a_cut_holds_what_is_under_way_and_heal_delivers_it(
    server: EchoServer, proxy: Proxy, connect: Connect
) -> None:
    old = connect()
    assert ask(old, b"before") == b"before"
    proxy.cut()
    old.sendall(b"meanwhile")
    new = connect()
    new.sendall(b"of a new one")
    old.settimeout(0.2)
    with pytest.raises(TimeoutError):
        old.recv(1)
    assert server.received == [b"before"]
    proxy.heal()
    old.settimeout(10)
    assert old.recv(100) == b"meanwhile"
    assert new.recv(100) == b"of a new one"


def test_refuse_resets_connections_and_refuses_new_ones(proxy: Proxy, connect: Connect) -> None:
    old = connect()
    assert ask(old, b"before") == b"before"
    proxy.refuse()
    assert ends(old)
    with pytest.raises(ConnectionRefusedError):
        connect()
    assert proxy.connections == 0
    proxy.heal()
    assert ask(connect(), b"after") == b"after"


def test_reset_ends_connections_and_welcomes_new_ones(proxy: Proxy, connect: Connect) -> None:
    old = connect()
    assert ask(old, b"before") == b"before"
    proxy.reset()
    assert ends(old)
    assert ask(connect(), b"after") == b"after"


def test_delayed_bytes_keep_their_order_also_when_the_delay_ends(proxy: Proxy, connect: Connect) -> None:
    connection = connect()
    assert ask(connection, b"0") == b"0"
    proxy.delay(0.1)
    connection.sendall(b"12345")
    connection.sendall(b"6789")
    proxy.delay(0)
    connection.sendall(b"abc")
    connection.shutdown(socket.SHUT_WR)
    found = b""
    while part := connection.recv(100):
        found += part
    assert found == b"123456789abc"


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("direction", ["request", "reply"])
@pytest.mark.parametrize("skip", [0, 2])
def test_a_dropped_chunk_takes_its_connection_along(
    server: EchoServer, proxy: Proxy, connect: Connect, direction: Direction, skip: int, partial: bool
) -> None:
    connection = connect()
    drop = proxy.drop_next(direction, skip=skip, partial=partial)
    for number in range(skip):
        assert ask(connection, b"pass%d" % number) == b"pass%d" % number
    assert not drop.fired.is_set()
    found = ask(connection, b"dropped!")
    assert drop.fired.is_set() and ends(connection)
    got = b"drop" if partial else b""
    if direction == "reply":
        assert found == got and server.received[-1] == b"dropped!"
    else:
        assert found == b""  # half of the request may have been answered, to a connection that has ended
        wait_until(lambda: b"".join(server.received[skip:]) == got)
    assert ask(connect(), b"after") == b"after"


def test_a_server_that_is_not_there_resets_the_client(server: EchoServer) -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    proxy = Proxy(port)
    try:
        # The reset may come before `connect` returns.
        with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", proxy.port), 10) as one:
            one.sendall(b"anyone?")
            raise ConnectionAbortedError("closed in order") if one.recv(1) == b"" else AssertionError
        wait_until(lambda: proxy.connections == 0)
    finally:
        proxy.close()


def test_a_fork_does_not_keep_a_refusing_port_open(proxy: Proxy, connect: Connect) -> None:
    from tests.support.children import child

    reader, writer = socket.socketpair()
    with reader, writer:
        with child(lambda: reader.recv(1)):  # holds a copy of the listening socket
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                connect()
            writer.sendall(b"!")
