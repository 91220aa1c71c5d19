"""A descriptor that travels with a control message: it arrives, is closed with its connection, and may find no room."""

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb.engine.coordinator.event_fds import EventFds
from occamdb.engine.model.errors import InvalidArgumentError
from occamdb.ipc.control import ControlClient, ControlListener, ServerConnection
from tests.support.children import wait_until


class Ends:
    """A client and its connection at the listener."""

    def __init__(self, path: Path) -> None:
        self.listener = ControlListener(path)
        self.client = ControlClient.connect(path, 10.0)
        accepted: list[ServerConnection] = []

        def accept() -> bool:
            connection = self.listener.accept()
            if connection is not None:
                accepted.append(connection)
            return bool(accepted)

        wait_until(accept)
        self.server = accepted[0]

    def exchange(self, descriptor: int = -1) -> dict[str, object]:
        """One call of the client, with its answer; the message as it arrived."""
        replies: list[dict[str, object]] = []
        thread = threading.Thread(
            target=lambda: replies.append(self.client.call({"n": 1}, 10.0, descriptor=descriptor))
        )
        thread.start()
        received: list[dict[str, object]] = []
        wait_until(lambda: self._receive(received))
        self.server.queue({"ok": True})
        thread.join()
        assert replies == [{"ok": True}]
        return received[0]

    def _receive(self, received: list[dict[str, object]]) -> bool:
        received += self.server.receive()
        return bool(received)

    def close(self) -> None:
        self.client.close()
        self.server.close()
        self.listener.close()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    both = Ends(tmp_path / "socket")
    yield both
    both.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_arrives_and_belongs_to_who_takes_it(ends: Ends) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    assert ends.exchange(fd) == {"n": 1}
    taken = ends.server.take_descriptor()
    assert taken not in (-1, fd) and not os.get_inheritable(taken)
    os.eventfd_write(taken, 3)
    assert os.eventfd_read(fd) == 3
    assert ends.server.take_descriptor() == -1
    os.close(taken)
    os.close(fd)


def test_without_one_there_is_none(ends: Ends) -> None:
    ends.exchange()
    assert ends.server.take_descriptor() == -1 and not ends.server.descriptors_lost


def test_what_nobody_took_is_closed_with_the_connection(ends: Ends) -> None:
    before = open_descriptors()
    fd = os.eventfd(0)
    ends.exchange(fd)
    os.close(fd)
    assert open_descriptors() == before + 1
    ends.server.close()
    assert open_descriptors() == before - 1


def test_a_second_one_is_closed_at_once(ends: Ends) -> None:
    fd = os.eventfd(0)
    ends.exchange(fd)
    before = open_descriptors()
    ends.exchange(fd)
    assert open_descriptors() == before and ends.server.descriptors_lost
    os.close(ends.server.take_descriptor())
    os.close(fd)


def test_no_room_for_it(ends: Ends) -> None:
    """The message arrives all the same, and the owner can tell why there is no descriptor."""
    fd = os.eventfd(0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        assert ends.exchange(fd) == {"n": 1}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert ends.server.descriptors_lost
    assert ends.server.take_descriptor() == -1
    os.close(fd)


def test_one_eventfd_sent_many_times_is_kept_once() -> None:
    fd, other = os.eventfd(0), os.eventfd(0)
    before = open_descriptors()
    kept = EventFds()
    adopted = [kept.adopt(os.dup(fd)) for _ in range(5)]
    assert len(set(adopted)) == 1 and open_descriptors() == before + 1
    assert kept.adopt(os.dup(other)) != adopted[0]
    assert os.get_blocking(adopted[0]) is False
    for _ in range(5):
        os.eventfd_write(adopted[0], 1)
        kept.release(adopted[0])
    assert os.eventfd_read(fd) == 5
    assert open_descriptors() == before + 1
    kept.release(-1)
    for number in (fd, other):
        os.close(number)


@pytest.mark.parametrize("kind", ["pipe", "file", "nothing"])
def test_what_is_no_eventfd_is_refused_and_closed(kind: str) -> None:
    read, write = os.pipe()
    descriptor = {"pipe": lambda: os.dup(write), "file": lambda: os.open(os.devnull, os.O_WRONLY)}
    before = open_descriptors()
    with pytest.raises(InvalidArgumentError, match="eventfd"):
        EventFds().adopt(-1 if kind == "nothing" else descriptor[kind]())
    assert open_descriptors() == before
    os.close(read)
    os.close(write)
