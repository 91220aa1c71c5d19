"""A process is told from another one that has, or had, its pid."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from occamdb.ipc.process import ProcessIdentity, boot_id, identify, is_alive, own_identity
from tests.support.children import child, wait_until


def test_own_identity_is_alive_and_a_forged_one_is_not() -> None:
    own = own_identity()
    assert own == identify(os.getpid()) and is_alive(own)
    assert not is_alive(dataclasses.replace(own, start_time=own.start_time + 1)), "a reused pid"
    assert not is_alive(dataclasses.replace(own, boot="another boot"))


def test_a_child_has_its_own_identity() -> None:
    parent = own_identity()

    def body() -> None:
        assert own_identity() != parent and own_identity().pid == os.getpid()
        assert is_alive(parent)

    with child(body):
        pass


def test_stopped_is_alive_and_a_zombie_is_dead() -> None:
    with child(signal.pause, check=False) as process:
        identity = identify(process.pid)
        assert identity is not None
        process.stop()
        assert is_alive(identity)
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: process.state() == "Z")
        assert not is_alive(identity)
        process.join()
        assert not is_alive(identity) and identify(process.pid) is None


@pytest.mark.parametrize("command", ["plain", "a) Z 1 (b", "x y z"])
def test_the_name_of_a_command_cannot_confuse(tmp_path: Path, command: str) -> None:
    program = tmp_path / command
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    process = subprocess.Popen([str(program), "60"])
    try:
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == command)
        identity = identify(process.pid)
        assert identity is not None and is_alive(identity)
        assert identity.start_time >= own_identity().start_time
    finally:
        process.kill()
        process.wait()
    assert not is_alive(identity)


def test_identities_travel_through_files() -> None:
    own = own_identity()
    assert ProcessIdentity.from_dict(json.loads(json.dumps(own.to_dict()))) == own


@pytest.mark.parametrize(
    "data",
    [
        None,
        3,
        [],
        {},
        {"pid": "1", "start_time": 1, "boot": "x"},
        {"pid": 0, "start_time": 1, "boot": boot_id()},
    ],
)
def test_junk_is_no_identity(data: object) -> None:
    assert ProcessIdentity.from_dict(data) is None


def test_who_cannot_be_looked_at_is_alive() -> None:
    """Without a descriptor for /proc: it would be fatal to take a living process for a dead one."""
    own = own_identity()

    def body() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        assert is_alive(own)
        with pytest.raises(OSError):
            identify(own.pid)

    with child(body):
        pass
