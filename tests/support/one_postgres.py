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
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as, str(self._programs / program), *arguments],
            check=True,
            capture_output=True,
            cwd=self.directory,
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with open(self.directory / "log", "ab") as log:
            self._server = subprocess.Popen(
                [*self._as, str(self._programs / "postgres"), "-D", str(self.data)],
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )
        until = time.monotonic() + _SECONDS
        while True:
            try:
                psycopg.connect(self.admin_url, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > until or self._server.poll() is not None:
                    raise
                time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of its first process."""
        assert self._server is not None
        return self._server.pid

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
        """Stop it; SIGQUIT: like a crash, with nothing written on the way."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait(_SECONDS)
            self._server = None

    def remove(self) -> None:
        """Stop it, and remove its files."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
