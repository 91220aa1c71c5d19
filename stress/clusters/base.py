"""What clusters of every kind have in common: servers with names, a proxy in front of each, and faults.

A cluster is used by one thread at a time. Its verbs return when their effect is there, or raise ClusterError.
A server has one state: it runs, is paused (SIGSTOP for all of its processes), or has ended.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from occamdb.stress.clusters.keeper import ClusterError, Keeper, free_port, poll_until, tail
from occamdb.stress.clusters.proxy import Proxy

__all__ = ["READY_TIMEOUT", "Cluster", "Server"]

READY_TIMEOUT = 60.0
ASK_EVERY = 0.06  # seconds between two questions to a server: each may be a process


@dataclass(slots=True)
class Server:
    """One server.

    Attributes:
      name: "s1", "s2", …
      directory: its files.
      port: where it listens itself.
      proxy: what clients reach it through.
      pid: of its first process; 0: it has not been started yet.
      is_paused: SIGSTOP was sent.
    """

    name: str
    directory: Path
    port: int
    proxy: Proxy
    pid: int = 0
    is_paused: bool = False

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.directory.with_suffix(".log")

    @property
    def address(self) -> str:
        """Host and port for clients."""
        return f"127.0.0.1:{self.proxy.port}"


class Cluster:
    """Base of the clusters. A context manager: starts at entry, stops at exit."""

    kind: ClassVar[str] = ""

    def __init__(self, size: int) -> None:
        """Make the directory and the proxies; nothing is started."""
        self.keeper = Keeper(self.kind)
        self.directory = self.keeper.directory
        self.servers: dict[str, Server] = {}
        for number in range(1, size + 1):
            name = f"s{number}"
            port = free_port()
            self.servers[name] = Server(name, self.directory / name, port, Proxy(port))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- what each kind does in its own way -------------------------------------------------------------------

    def start(self) -> None:
        """Make and start every server, and wait until all are ready."""
        raise NotImplementedError

    def url(self, names: Sequence[str] = ()) -> str:
        """As `occamdb.open` takes it, through the proxies of these servers (all unless given)."""
        raise NotImplementedError

    @property
    def primary(self) -> str:
        """The server that commits: the primary, or the leader."""
        raise NotImplementedError

    def wait_until_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Wait until every server that runs belongs to the cluster and a commit is acknowledged."""
        raise NotImplementedError

    def fail_over(self) -> str:
        """Make the cluster commit again after its primary was lost; the name of the new one."""
        raise NotImplementedError

    def restart(self, name: str) -> None:
        """Start a server that has ended, as what it was; one that runs is killed first."""
        raise NotImplementedError

    # ---- the same for all -------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End everything and remove the directory. Stopping twice is harmless."""
        for server in self.servers.values():
            server.proxy.close()
        self.keeper.close()

    def is_alive(self, name: str) -> bool:
        """Whether a server runs or is paused."""
        server = self.servers[name]
        return bool(server.pid) and self.keeper.code(server.pid) is None

    def kill(self, name: str) -> None:
        """SIGKILL for all processes of a server, as when its machine loses power; they are gone afterwards."""
        server = self.servers[name]
        if server.pid:
            self.keeper.signal(server.pid, signal.SIGKILL)
        server.is_paused = False

    def pause(self, name: str) -> None:
        """SIGSTOP for all processes of a server."""
        server = self.servers[name]
        self.keeper.signal(server.pid, signal.SIGSTOP)
        server.is_paused = True

    def resume(self, name: str) -> None:
        """SIGCONT."""
        server = self.servers[name]
        self.keeper.signal(server.pid, signal.SIGCONT)
        server.is_paused = False

    def heal(self) -> None:
        """Resume every paused server and end the faults of every proxy. What has ended stays ended."""
        for name, server in self.servers.items():
            server.proxy.heal()
            if server.is_paused:
                self.resume(name)

    def _wait(self, condition: Callable[[], object], server: Server, timeout: float, what: str) -> None:
        """Wait for a condition of a server that must not end meanwhile."""

        def look() -> bool:
            if not self.is_alive(server.name):
                raise ClusterError(
                    f"{server.name} ended with {self.keeper.code(server.pid)}: {tail(server.log)}"
                )
            return bool(condition())

        try:
            poll_until(look, timeout, what, every=ASK_EVERY)
        except ClusterError as error:
            raise ClusterError(f"{error}; the log of {server.name}: {tail(server.log)}") from None
