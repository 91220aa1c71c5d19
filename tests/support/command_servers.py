"""URLs for tests of commands: of a server in the memory of the test, or of one that runs.

`server` is the URL of a database that nobody else uses: "dict", and with OCCAMDB_TEST_CLUSTER=1 also "postgres" and
"etcd". Commands run in the process of the test, and so reach the server "dict" too.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from occamdb.engine.remote import opening
from tests.support.dict_backend import DictBackend, DictServer

__all__ = ["DICT_URL", "server", "server_kind"]

DICT_URL = "dict://here"


@pytest.fixture(scope="session", params=["dict", "postgres", "etcd"])
def server_kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The kind of server, and its URL. Of the session, so that it runs before any test is guarded."""
    name = str(request.param)
    return name, DICT_URL if name == "dict" else str(request.getfixturevalue(name).url())


@pytest.fixture
def server(server_kind: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a database of the test's own, in which there is nothing yet."""
    name, url = server_kind
    own = f"t{uuid.uuid4().hex[:12]}"
    if name == "postgres":
        url += f"?schema={own}"
    elif name == "etcd":
        url += f"-{own}"
    else:
        module = _module_on_dict(DictServer())
        monkeypatch.setattr(opening, "module_of", lambda _: module)
        monkeypatch.setattr(opening, "kind_of", lambda _: SimpleNamespace(package="dict"))
    yield url


def _module_on_dict(on: DictServer) -> Any:
    """What the package of a kind of server offers, for a server in this process."""
    made: list[bool] = []

    def open_backend(url: str, base: bytes, **_: Any) -> DictBackend:
        made.append(True)
        return DictBackend(on, base)

    def describe(url: str) -> dict[str, Any]:
        return {"engine": "dict", "location": DICT_URL, "format": 1 if made else 0, "format_known": 1}

    def migrate(url: str) -> tuple[int, int]:
        before = 1 if made else 0
        made.append(True)
        return before, 1

    return SimpleNamespace(open_backend=open_backend, describe=describe, migrate=migrate)
