"""The ownership lock: one holder, freed by its death and by nothing else."""

import contextlib
import errno
import fcntl
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from occamdb.ipc import lock as lock_module
from occamdb.ipc.errors import IpcError, LockHeldError
from occamdb.ipc.lock import FileLock, lock_holder
from occamdb.ipc.process import own_identity
from tests.support.children import Child, child, wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "LOCK"


def held_elsewhere(path: Path) -> bool:
    try:
        holder = lock_holder(path)
    except LockHeldError:
        return False  # it has not written its name yet
    return holder is not None and holder.pid != os.getpid()


def hold_for_ever(path: Path) -> None:
    FileLock(path).acquire()
    lock = FileLock(path)
    with pytest.raises(LockHeldError):
        lock.acquire()
    signal.pause()


def test_a_second_holder_is_refused_and_told_by_whom(path: Path) -> None:
    with FileLock(path) as lock:
        assert lock.held
        lock.acquire()
        with pytest.raises(LockHeldError, match=str(os.getpid())) as caught:
            FileLock(path).acquire()
        assert caught.value.pid == os.getpid()

        def body() -> None:
            with pytest.raises(LockHeldError) as caught:
                FileLock(path).acquire()
            assert caught.value.pid == os.getppid()
            assert not lock.held, "a child holds nothing"
            with pytest.raises(LockHeldError):
                lock.acquire()

        with child(body):
            pass
        assert lock_holder(path) == own_identity(), "the child's end has not freed the parent's lock"
    assert not lock.held and lock_holder(path) is None
    with FileLock(path):
        pass


def test_death_frees_the_lock_and_a_stop_does_not(path: Path) -> None:
    with child(lambda: hold_for_ever(path), check=False) as holder:
        wait_until(lambda: held_elsewhere(path))
        holder.stop()
        with pytest.raises(LockHeldError) as caught:
            FileLock(path).acquire()
        assert caught.value.pid == holder.pid
        holder.kill()
    assert path.read_bytes(), "the dead holder's name is still inside"
    with FileLock(path) as lock:
        assert lock.held
        assert lock_holder(path) == own_identity()


def test_a_child_of_a_dead_holder_does_not_keep_the_lock(path: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "grandchild"

    def body() -> None:
        FileLock(path).acquire()
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        pid_file.with_suffix(".new").write_text(str(pid))
        pid_file.with_suffix(".new").rename(pid_file)
        signal.pause()

    with child(body, check=False) as holder:
        wait_until(pid_file.exists)
        grandchild = int(pid_file.read_text())
        try:
            wait_until(lambda: not path_is_open(grandchild, path))
            holder.kill()
            with FileLock(path) as lock:
                assert lock.held
        finally:
            os.kill(grandchild, signal.SIGKILL)


def path_is_open(pid: int, path: Path) -> bool:
    directory = Path(f"/proc/{pid}/fd")
    return any(os.readlink(link) == str(path) for link in directory.iterdir() if link.is_symlink())


def test_a_lock_file_that_was_replaced_is_noticed(path: Path) -> None:
    first = FileLock(path)
    first.acquire()
    path.unlink()
    with FileLock(path) as second:
        assert second.held, "the old inode is nobody's business"
        with pytest.raises(LockHeldError):
            FileLock(path).acquire()
    first.release()


def test_contenders_never_share_the_lock(path: Path, tmp_path: Path) -> None:
    """Each winner creates and removes a marker exclusively: two owners at once would collide."""
    marker = tmp_path / "owner"

    def contend() -> None:
        wins = 0
        while wins < 30:
            try:
                with FileLock(path):
                    os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                    os.unlink(marker)
                    wins += 1
            except LockHeldError:
                continue

    with child(contend), child(contend):
        contend()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff" * 5000])
def test_what_is_inside_does_not_matter(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with FileLock(path):
        assert lock_holder(path) == own_identity()


def test_what_is_no_file_is_refused(path: Path, tmp_path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(IpcError):
        FileLock(path).acquire()
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IpcError):
        FileLock(path).acquire()
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(IpcError, match="directory must exist"):
        FileLock(tmp_path / "absent" / "LOCK").acquire()


def test_the_descriptor_is_not_inherited_by_exec(path: Path) -> None:
    with FileLock(path) as lock:
        assert not os.get_inheritable(lock._fd)


def test_a_probe_that_is_forked_or_stopped_in_the_middle_holds_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    close = os.close
    started: list[Child] = []

    def fork_first(fd: int) -> None:
        if not started:
            started.append(Child(signal.pause))
        close(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fork_first)
        assert lock_holder(path) is None
    try:
        with FileLock(path) as lock:
            assert lock.held, "the child has a copy of the probe's descriptor, and no share in any lock"
    finally:
        started[0].kill()


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process lead to."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry.path))
    return found


def test_a_child_forked_while_a_lock_is_taken_does_not_keep_it(path: Path, tmp_path: Path) -> None:
    """Another thread forks between the flock and the note of who holds it; then the owner dies."""
    told = tmp_path / "grandchild"
    write_identity = lock_module._write_identity
    forked = threading.Event()

    def fork() -> None:
        grandchild = Child(signal.pause)
        told.with_suffix(".new").write_text(str(grandchild.pid))
        told.with_suffix(".new").rename(told)
        forked.set()

    def fork_meanwhile(*arguments: Any) -> None:
        threading.Thread(target=fork, daemon=True).start()
        # In vain, if all is well: the fork waits for us.
        forked.wait(0.5)
        write_identity(*arguments)

    def own_and_die() -> None:
        vars(lock_module)["_write_identity"] = fork_meanwhile
        FileLock(path).acquire()
        signal.pause()

    with child(own_and_die, check=False) as owner:
        wait_until(told.exists)
        grandchild = int(told.read_text())
        try:
            # It lets go as the first thing it does; on a busy machine that may be after its parent went on.
            wait_until(lambda: str(path) not in open_files(grandchild))
            owner.kill()
            with FileLock(path) as lock:
                assert lock.held
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_without_record_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none: ownership is the flock, and a probe asks for that."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EINVAL, "no record locks")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with FileLock(path):
        assert lock_holder(path) == own_identity()
        with pytest.raises(LockHeldError):
            FileLock(path).acquire()
    assert lock_holder(path) is None
    with FileLock(path):
        pass
