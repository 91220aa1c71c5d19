"""Redis as a peer: a server of the row's own, on a Unix socket in its directory.

The first `open` in a directory starts the server; the later ones, of the workers, connect to it. It belongs to the
process that started it, which ends it with `stop_servers` when the row is over.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgpack

from occamdb.stress.bench.model import Unavailable
from occamdb.stress.bench.peers import batches, peer_module

START_TIMEOUT = 10.0
SOCKET_PATH_MAX = 107  # of the address of a Unix socket
# What a command has to have reached before it is answered, as the levels in `stores` say it.
LEVELS = {
    "none": ("--appendonly", "no"),
    "standard": ("--appendonly", "yes", "--appendfsync", "everysec"),
    "always": ("--appendonly", "yes", "--appendfsync", "always"),
}

_servers: dict[Path, subprocess.Popen[bytes]] = {}


class RedisStore:
    """A Redis server on this machine, reached through a Unix socket."""

    def open(self, path: Path, durability: str) -> None:
        """Connect, starting the server if none runs for this directory."""
        redis = peer_module("redis")
        socket = path / "redis.sock"
        if not socket.exists():
            _start(path, socket, durability)
        self._redis = redis.Redis(unix_socket_path=str(socket))
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self._redis.ping()
                return
            except redis.exceptions.ConnectionError:
                if time.monotonic() > deadline:
                    raise Unavailable(f"redis-server does not answer; see {path}/redis.log") from None
                time.sleep(0.01)

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        """Write in pipelines of 1,000."""
        for batch in batches(items):
            pipe = self._redis.pipeline(transaction=False)
            for key, value in batch:
                pipe.set(self.encode(key), msgpack.packb(value))
            pipe.execute()

    def encode(self, key: str) -> bytes:
        """Keys are bytes."""
        return key.encode()

    def read_many(self, keys: Sequence[bytes]) -> None:
        """One MGET."""
        for value in self._redis.mget(keys):
            msgpack.unpackb(value)

    def update(self, key: bytes) -> None:
        """WATCH, GET, MULTI, SET, EXEC."""
        with self._redis.pipeline() as pipe:
            pipe.watch(key)
            value = msgpack.unpackb(pipe.get(key))
            value["count"] += 1
            pipe.multi()
            pipe.set(key, msgpack.packb(value))
            pipe.execute()

    def put(self, key: bytes, value: Any) -> None:
        """One SET."""
        self._redis.set(key, msgpack.packb(value))

    def scan(self, prefix: bytes) -> int:
        """Not offered."""
        raise Unavailable("redis has no scan in key order")

    def begin(self) -> None:
        """Not offered."""
        raise Unavailable("redis has no read transaction")

    def close(self) -> None:
        """Hang up; the server stays for the other workers."""
        self._redis.close()


def _start(path: Path, socket: Path, durability: str) -> None:
    program = shutil.which("redis-server")
    if program is None:
        raise Unavailable("redis-server is not installed")
    if len(str(socket).encode()) > SOCKET_PATH_MAX:
        raise Unavailable(f"{socket} is too long for a socket: choose a shorter --dir")
    options = ("--port", "0", "--unixsocket", str(socket), "--dir", str(path), "--save", "")
    with open(path / "redis.log", "wb") as log:
        _servers[path] = subprocess.Popen(
            [program, *options, *LEVELS[durability]], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    deadline = time.monotonic() + START_TIMEOUT
    while not socket.exists():
        if _servers[path].poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"redis-server did not start: {(path / 'redis.log').read_text()[-200:]}")
        time.sleep(0.01)


def stop_servers(scratch: Path) -> None:
    """End the servers that this process started in or below a directory."""
    for path in [path for path in _servers if path.is_relative_to(scratch)]:
        server = _servers.pop(path)
        server.kill()  # what it holds is removed with the directory
        server.wait()
