"""An etcd cluster of one or more members.

Clients reach a member through its proxy. So do the other members for what they send it; what it asks of them, and
their answers to that, goes past it. A member that is cut off is therefore cut off from clients, and hears from its
peers only what it fetches itself. `pause` is the fault that silences a member altogether.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from typing import Any

from occamdb.stress.clusters.base import READY_TIMEOUT, Cluster, Server
from occamdb.stress.clusters.binaries import etcd_program
from occamdb.stress.clusters.keeper import free_port, poll_until
from occamdb.stress.clusters.proxy import Proxy

__all__ = ["EtcdCluster"]

ASK_TIMEOUT = 2.0
PREFIX = "app"


class EtcdCluster(Cluster):
    """`members` members.

    Args:
      members: 1, 3 or 5.
      settings: further options of etcd, without the dashes.
    """

    kind = "etcd"

    def __init__(self, members: int = 3, *, settings: dict[str, str] | None = None) -> None:
        self.program = etcd_program()
        super().__init__(members)
        self._peer_ports = {name: free_port() for name in self.servers}
        self.peer_proxies = {name: Proxy(port) for name, port in self._peer_ports.items()}
        self.settings = {
            "max-txn-ops": "10000",
            "max-request-bytes": str(64 << 20),
            "quota-backend-bytes": str(4 << 30),
            "snapshot-count": "10000",
            "logger": "zap",
            "log-level": "warn",
        } | (settings or {})

    def start(self) -> None:
        """Start all members of a new cluster."""
        for server in self.servers.values():
            self._start(server)
        self.wait_until_ready()

    def stop(self) -> None:
        """End everything."""
        for proxy in self.peer_proxies.values():
            proxy.close()
        super().stop()

    def url(self, names: Sequence[str] = ()) -> str:
        """The members and a prefix."""
        return f"etcd://{','.join(self.servers[name].address for name in names or self.servers)}/{PREFIX}"

    @property
    def primary(self) -> str:
        """The leader, as most of the members that answer say; waits until there is one."""
        return str(poll_until(self._leader, READY_TIMEOUT, "the election of a leader"))

    def wait_until_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Wait until every member that runs has answered a read that needs the quorum."""
        for server in self.servers.values():
            if self.is_alive(server.name) and not server.is_paused:

                def healthy(name: str = server.name) -> bool:
                    return self._ask(name, "/health").get("health") == "true"

                self._wait(healthy, server, timeout, f"the health of {server.name}")

    def restart(self, name: str) -> None:
        """Start a member again."""
        self.kill(name)
        self._start(self.servers[name])

    def fail_over(self) -> str:
        """The members elect by themselves; who it is."""
        return self.primary

    def cut(self, name: str) -> None:
        """Cut a member off from clients and from what its peers send."""
        self.servers[name].proxy.cut()
        self.peer_proxies[name].cut()

    def heal(self) -> None:
        """End all faults."""
        for proxy in self.peer_proxies.values():
            proxy.heal()
        super().heal()

    def _leader(self) -> str:
        votes: list[str] = []
        ids: dict[str, str] = {}
        for server in self.servers.values():
            if self.is_alive(server.name) and not server.is_paused:
                status = self._ask(server.name, "/v3/maintenance/status", {})
                if "header" in status:
                    ids[status["header"]["member_id"]] = server.name
                    votes.append(status.get("leader", "0"))
        found = max(votes, key=votes.count, default="0")
        return ids.get(found, "") if 2 * votes.count(found) > len(self.servers) else ""

    def _ask(self, name: str, path: str, body: Any = None) -> dict[str, Any]:
        """The answer of a member, past its proxy; empty when it gives none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.servers[name].port, timeout=ASK_TIMEOUT)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, json.dumps(body))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        except (OSError, ValueError, http.client.HTTPException):
            return {}
        finally:
            connection.close()

    def _start(self, server: Server) -> None:
        peers = {name: f"http://127.0.0.1:{proxy.port}" for name, proxy in self.peer_proxies.items()}
        options = {
            "name": server.name,
            "data-dir": str(server.directory),
            "listen-client-urls": f"http://127.0.0.1:{server.port}",
            "advertise-client-urls": f"http://{server.address}",
            "listen-peer-urls": f"http://127.0.0.1:{self._peer_ports[server.name]}",
            "initial-advertise-peer-urls": peers[server.name],
            "initial-cluster": ",".join(f"{name}={url}" for name, url in peers.items()),
            "initial-cluster-token": self.directory.name,
            "initial-cluster-state": "new",
        } | self.settings
        server.pid = self.keeper.start(
            [str(self.program), *(f"--{name}={value}" for name, value in options.items())], server.log
        )
        server.is_paused = False
