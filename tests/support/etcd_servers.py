"""Members of etcd on loopback ports, in a temporary directory, for tests; each is ended by its process id."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["EtcdCluster", "EtcdMember", "free_ports"]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


class EtcdMember:
    """One process of etcd."""

    def __init__(
        self,
        name: str,
        directory: Path,
        ports: tuple[int, int],
        peers: str,
        flags: Sequence[str],
        tls: tuple[Path, Path] | None,
    ) -> None:
        self.name = name
        self.port, peer = ports
        self._tls = tls
        self._log = directory / f"{name}.log"
        client_url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        peer_url = f"http://127.0.0.1:{peer}"
        self._command = [
            shutil.which("etcd") or "etcd",
            *("--name", name),
            *("--data-dir", str(directory / name)),
            *("--listen-client-urls", client_url),
            *("--advertise-client-urls", client_url),
            *("--listen-peer-urls", peer_url),
            *("--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", peers),
            *(["--cert-file", str(tls[0]), "--key-file", str(tls[1])] if tls else []),
            *flags,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, with the data that it has."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env={**os.environ, "ETCD_UNSUPPORTED_ARCH": ""}
            )

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def ask(self, path: str, body: dict[str, object] | None = None) -> dict[str, object]:
        """A call of the JSON gateway; OSError when it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        if self._tls is not None:
            context = ssl.create_default_context(cafile=str(self._tls[0]))
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=2, context=context)
        try:
            connection.request("POST", path, json.dumps(body or {}))
            answer: dict[str, object] = json.loads(connection.getresponse().read())
            return answer
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()


class EtcdCluster:
    """Some members that know each other.

    Args:
      directory: for their data; the caller removes it.
      size: how many members.
      flags: of etcd, for each.
      tls: its certificate and key, for clients.
    """

    def __init__(
        self,
        directory: Path,
        size: int = 1,
        flags: Sequence[str] = (),
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        ports = free_ports(2 * size)
        names = [f"m{index}" for index in range(size)]
        peers = ",".join(f"{n}=http://127.0.0.1:{ports[size + i]}" for i, n in enumerate(names))
        self.members = [
            EtcdMember(n, directory, (ports[i], ports[size + i]), peers, flags, tls)
            for i, n in enumerate(names)
        ]

    def start(self) -> None:
        """Start all of them, and wait until they have a leader."""
        for member in self.members:
            member.start()
        self.await_leader()

    def await_leader(self, timeout: float = 30.0) -> EtcdMember:
        """The member that leads, as soon as a write succeeds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for member in self.members:
                if not member.is_running:
                    continue
                with contextlib.suppress(OSError, KeyError, TypeError):
                    status = member.ask("/v3/maintenance/status")
                    if status["leader"] == status["header"]["member_id"]:  # type: ignore[index]
                        member.ask("/v3/kv/put", {"key": "cHJvYmU=", "value": ""})
                        return member
            time.sleep(0.05)
        raise TimeoutError("etcd has no leader")

    def url(self, prefix: str) -> str:
        """What `open` takes."""
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in self.members)
        return f"etcd://{hosts}/{prefix}"

    def stop(self) -> None:
        """End all of them."""
        for member in self.members:
            member.kill()
