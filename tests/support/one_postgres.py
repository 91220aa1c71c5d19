"""A PostgreSQL server of a test's own: in a temporary directory, on loopback, as an unprivileged user.

Runs only with OCCAMDB_TEST_CLUSTER=1, because it needs the server's programs.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psycopg

from .leaks import MARKER

__all__ = ["OnePostgres", "why_not"]

_USER = "postgres"
_SECONDS = 60.0


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4]))
    return found[-1].parent if found else None


def why_not() -> str | None:
    """Why no server can be started here; None: it can."""
    if os.environ.get("OCCAMDB_TEST_CLUSTER") != "1":
        return "set OCCAMDB_TEST_CLUSTER=1 to run the tests that start a PostgreSQL server"
    if _programs() is None:
        return "the programs of PostgreSQL are not installed (/usr/lib/postgresql)"
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class OnePostgres:
    """A running server.

    Args:
      settings: for its configuration file.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        programs = _programs()
        assert programs is not None
        self._programs = programs
        self.directory = Path(tempfile.mkdtemp(prefix="occamdb-pg-"))
        self.port = _free_port()
        self._as = (
            ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"] if os.getuid() == 0 else []
        )
        if self._as:
            entry = pwd.getpwnam(_USER)
            os.chown(self.directory, entry.pw_uid, entry.pw_gid)
        data = self.directory / "data"
        self._run(
            "initdb",
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        )
        lines = {
            "port": str(self.port),
            "listen_addresses": "'127.0.0.1'",
            "unix_socket_directories": f"'{self.directory}'",
            "max_connections": "60",
            "shared_buffers": "'32MB'",
            **(settings or {}),
        }
        with open(data / "postgresql.conf", "a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in lines.items())
        self.data = data
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as, str(self._programs / program), *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != MARKER},
            cwd=self.directory,
        )

    def start(self) -> None:
        """Start it, and wait until it answers. It is nobody's child, like a server that was there before."""
        self._run(
            "pg_ctl",
            "start",
            "-w",
            "-t",
            str(int(_SECONDS)),
            "-D",
            str(self.data),
            "-l",
            str(self.directory / "log"),
        )

    @property
    def pid(self) -> int:
        """Of its first process."""
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    @property
    def admin_url(self) -> str:
        """The database that every server has."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def url(self, database: str = "postgres", user: str = "postgres", schema: str = "") -> str:
        """The URL of a database."""
        query = f"?schema={schema}" if schema else ""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}{query}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """A connection of the superuser."""
        return psycopg.connect(self.url(database), autocommit=True)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it, if it runs; SIGQUIT: like a crash, with nothing written on the way."""
        try:
            pid = self.pid
            os.kill(pid, how)
        except (FileNotFoundError, ProcessLookupError):
            return
        until = time.monotonic() + _SECONDS
        while _runs(pid):
            assert time.monotonic() < until, f"the server {pid} does not stop"
            time.sleep(0.02)

    def remove(self) -> None:
        """Stop it, and remove its files."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
