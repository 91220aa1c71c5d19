"""A PostgreSQL cluster: a primary, and standbys by physical replication.

Invariants:
1. Clients and standbys reach a server through its proxy: a server that is cut off is so for both.
2. With standbys and `synchronous`, an acknowledged commit is flushed by the primary and one standby.
   `fail_over` looks at every standby and promotes the one that received most, so that it has every such commit.
3. The old primary is killed before a standby is promoted (fencing), and comes back by `rejoin` alone.
4. `wait_until_ready` commits something. With 2, all that the primary had committed before is then on a standby as
   well. Otherwise a primary that was restarted shows commits that no standby has, and readers may see what a
   fail-over would take back. Wait after each restart before the next fault.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from occamdb.stress.clusters.base import READY_TIMEOUT, Cluster, Server
from occamdb.stress.clusters.binaries import postgres_programs
from occamdb.stress.clusters.keeper import ClusterError, poll_until

__all__ = ["PostgresCluster"]

ADMIN, USER, DATABASE = "postgres", "app", "app"
QUERY_TIMEOUT, START_TIMEOUT = 5.0, 60.0
# How a standby says that it has replayed all of its own log: its startup process waits for more.
WAITS_FOR_MORE = (
    "select count(*) from pg_stat_activity where backend_type = 'startup'"
    " and wait_event in ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval')"
)
# What a standby has of the log, in bytes. Since its last start it may not have received anything.
RECEIVED = (
    "select pg_wal_lsn_diff(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0')::bigint"
)
STREAM_TIMEOUT = 15.0  # seconds until a standby that does not stream is made anew
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "mmap",  # nothing of a killed server is left in /dev/shm
    "wal_level": "replica",
    "wal_log_hints": "on",  # pg_rewind needs it
    "wal_keep_size": "256MB",
    "max_wal_size": "512MB",
    "max_wal_senders": "10",
    "hot_standby": "on",
    "wal_receiver_timeout": "3s",
    "wal_sender_timeout": "5s",
    "wal_retrieve_retry_interval": "100ms",
    "log_line_prefix": "%m [%p] %a ",
}


class PostgresCluster(Cluster):
    """A primary with `standbys` standbys.

    Args:
      standbys: how many.
      synchronous: a commit waits for any one of them.
      fsync: off: quicker, and nothing survives a loss of power; a SIGKILL loses nothing either way.
      settings: further lines of postgresql.conf.
    """

    kind = "postgres"

    def __init__(
        self,
        standbys: int = 2,
        *,
        synchronous: bool = True,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.programs = postgres_programs()
        super().__init__(1 + standbys)
        self.password = secrets.token_hex(8)
        self._primary = next(iter(self.servers))
        self._fenced: set[str] = set()
        self.settings = SETTINGS | {"fsync": "on" if fsync else "off"} | dict(settings or {})
        if standbys and synchronous:
            # The same on all servers: the primary does not wait for itself, since it never connects to itself.
            self.settings["synchronous_standby_names"] = f"ANY 1 ({', '.join(self.servers)})"
        self._pass_file = self.keeper.write(
            self.directory / "pgpass", f"*:*:*:{ADMIN}:{self.password}\n*:*:*:{USER}:{self.password}\n"
        )

    # ---- starting -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make the primary, the user and database of the application, and copies of all for the standbys."""
        primary = self.servers[self._primary]
        password = self.keeper.write(self.directory / "password", self.password)
        self._program(
            primary, "initdb", "-D", str(primary.directory), "-U", ADMIN, "-A", "scram-sha-256",
            f"--pwfile={password}", "-E", "UTF8", "--no-locale", "--no-sync",
        )  # fmt: skip
        lines = "".join(f"{name} = '{value}'\n" for name, value in self.settings.items())
        self.keeper.write(primary.directory / "postgresql.conf", lines)
        self._start(primary)
        self.query(
            primary.name,
            f"create role {USER} login password '{self.password}'",
            local=True,
            timeout=START_TIMEOUT,
        )
        self.query(
            primary.name, f"create database {DATABASE} owner {USER}", local=True, timeout=START_TIMEOUT
        )
        for server in self.servers.values():
            if server is not primary:
                self._copy(server)
                self._start(server)
        self.wait_until_ready()

    def url(self, names: Sequence[str] = ()) -> str:
        """All servers, whatever they are just now: the client looks for the one that takes writes."""
        hosts = ",".join(self.servers[name].address for name in names or self.servers)
        return f"postgresql://{USER}:{quote(self.password)}@{hosts}/{DATABASE}"

    @property
    def primary(self) -> str:
        """The server that was made the primary last."""
        return self._primary

    @property
    def standbys(self) -> list[str]:
        """The others, except for those that must rejoin."""
        return [name for name in self.servers if name != self._primary and name not in self._fenced]

    def query(
        self,
        name: str,
        sql: str,
        *,
        database: str = "postgres",
        local: bool = False,
        timeout: float = QUERY_TIMEOUT,
    ) -> str:
        """What a statement says, as the administrator and past the proxy.

        Args:
          local: a commit does not wait for a standby.

        Raises:
          ClusterError: the server refused it, or did not answer within `timeout`.
        """
        server = self.servers[name]
        options = "-c synchronous_commit=local" if local else ""
        target = f"host=127.0.0.1 port={server.port} user={ADMIN} dbname={database} connect_timeout=2"
        try:
            done = subprocess.run(
                [self.programs / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, target],
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env={**os.environ, "PGPASSWORD": self.password, "PGOPTIONS": options, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{name} did not answer {sql!r} within {timeout:g} s") from None
        if done.returncode:
            raise ClusterError(f"{name} refused {sql!r}: {done.stderr.strip()}")
        return done.stdout.strip()

    def wait_until_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Wait until every standby that runs streams from the primary, and the primary has committed something."""
        primary = self.servers[self._primary]
        expected = {
            name for name in self.standbys if self.is_alive(name) and not self.servers[name].is_paused
        }

        def streaming() -> bool:
            return expected <= self._streaming()

        def commits() -> bool:
            with contextlib.suppress(ClusterError):
                return bool(self.query(primary.name, "select txid_current()"))
            return False

        what = "the replication to " + ", ".join(sorted(expected))
        try:
            self._wait(streaming, primary, min(timeout, STREAM_TIMEOUT), what)
        except ClusterError:
            if not self.is_alive(primary.name):
                raise
            # As an operator does with a standby that cannot follow the new timeline. What it had acknowledged, the
            # primary has: it was the furthest when it was promoted.
            for name in expected - self._streaming():
                self.remake(name)
            self._wait(streaming, primary, timeout, what)
        self._wait(commits, primary, timeout, "an acknowledged commit")

    def _streaming(self) -> set[str]:
        """The standbys that stream from the primary."""
        with contextlib.suppress(ClusterError):
            found = self.query(
                self._primary, "select application_name from pg_stat_replication where state = 'streaming'"
            )
            return set(found.split())
        return set()

    def remake(self, name: str) -> None:
        """Make a standby anew from a copy of the primary."""
        server = self.servers[name]
        self.kill(name)
        shutil.rmtree(server.directory)
        self._copy(server)
        self._start(server)

    # ---- failing over ---------------------------------------------------------------------------------------

    def restart(self, name: str) -> None:
        """Start a server again: the primary as the primary, the others as standbys."""
        if name in self._fenced:
            raise ClusterError(f"{name} was fenced: it comes back by rejoin")
        self.kill(name)
        self._start(self.servers[name])

    def fail_over(self) -> str:
        """Kill the primary, if it runs still, and promote the standby that received most."""
        return self.promote()

    def promote(self, name: str = "") -> str:
        """Make a standby the primary; the furthest unless it is named. The old primary is killed before.

        A named standby may lack acknowledged commits: that is how a fail-over that loses some is made.

        Returns:
          The new primary.
        """
        old = self._primary
        self.kill(old)
        candidates = [name] if name else self.standbys
        if not candidates:
            raise ClusterError(f"{old} has no standby left")
        for one in candidates:
            if self.servers[one].is_paused:
                self.resume(one)
            if not self.is_alive(one):
                self._start(self.servers[one])
        chosen = name or max(candidates, key=self._received)
        self._fenced.add(old)
        self._primary = chosen
        self.query(chosen, f"select pg_promote(true, {READY_TIMEOUT:.0f})", timeout=READY_TIMEOUT + 5)
        return chosen

    def rejoin(self, name: str) -> None:
        """Make an old primary a standby of the new one: by pg_rewind, or by a fresh copy if that does not do."""
        server = self.servers[name]
        if name not in self._fenced:
            raise ClusterError(f"{name} was not fenced: restart it")
        self.kill(name)
        # pg_rewind reads the timeline from the control file, which the promotion itself does not write.
        self.query(self._primary, "checkpoint", timeout=READY_TIMEOUT)
        source = f"host=127.0.0.1 port={self.servers[self._primary].port} user={ADMIN} dbname=postgres"
        try:
            self._program(
                server, "pg_rewind", "-D", str(server.directory), f"--source-server={source}", "--no-sync"
            )
        except ClusterError:
            shutil.rmtree(server.directory)
            self._copy(server)
        self.keeper.write(server.directory / "standby.signal", "")
        self._fenced.discard(name)
        self._start(server)

    def _received(self, name: str) -> int:
        """How far a standby's log reaches, once it has replayed what it had."""

        def look() -> int:
            with contextlib.suppress(ClusterError):
                if self.query(name, WAITS_FOR_MORE) != "0":
                    return int(self.query(name, RECEIVED) or 0)
            return 0

        return int(poll_until(look, READY_TIMEOUT, f"the end of the replay of {name}"))

    # ---- programs -------------------------------------------------------------------------------------------

    def _copy(self, server: Server) -> None:
        source = f"host=127.0.0.1 port={self.servers[self._primary].port} user={ADMIN}"
        self._program(
            server, "pg_basebackup", "-D", str(server.directory), "-d", source, "-c", "fast", "-X", "stream",
            "--no-sync",
        )  # fmt: skip
        self.keeper.write(server.directory / "standby.signal", "")

    def _start(self, server: Server) -> None:
        others = [one for one in self.servers.values() if one is not server]
        arguments = [
            "-c", f"port={server.port}",
            "-c", f"cluster_name={server.name}",
        ]  # fmt: skip
        if others:
            # Whichever takes writes is the primary, also after a promotion.
            source = (
                f"host={','.join(['127.0.0.1'] * len(others))}"
                f" port={','.join(str(one.proxy.port) for one in others)}"
                f" user={ADMIN} passfile={self._pass_file} application_name={server.name}"
                " target_session_attrs=read-write connect_timeout=2"
            )
            arguments += ["-c", f"primary_conninfo={source}"]
        server.pid = self.keeper.start(
            [str(self.programs / "postgres"), "-D", str(server.directory), *arguments], server.log, LC_ALL="C"
        )
        server.is_paused = False

        def answers() -> bool:
            with contextlib.suppress(ClusterError):
                return self.query(server.name, "select 1") == "1"
            return False

        self._wait(answers, server, READY_TIMEOUT, f"the start of {server.name}")

    def _program(self, server: Server, name: str, *arguments: str) -> None:
        self.keeper.run(
            [str(self.programs / name), *arguments], server.log, PGPASSFILE=str(self._pass_file), LC_ALL="C"
        )
