"""`kind`: each kind of server that keeps the contract. `backend`: a client with an empty namespace."""

from collections.abc import Iterator

import pytest

from occamdb.engine.remote.backend import Backend
from tests.support.backends import Kind, base_of_its_own
from tests.support.servers import needs_servers

KINDS = ["dict", "postgres", "etcd"]


def kind_of(request: pytest.FixtureRequest) -> Kind:
    """The kind that a parameter names; skips the test where it has no server."""
    name = str(request.param)
    if name == "dict":
        return Kind(name)
    needs_servers()
    return Kind(name, request.getfixturevalue(name).url())


@pytest.fixture(scope="session", params=KINDS)
def kind_of_session(request: pytest.FixtureRequest) -> Kind:
    """Of the session, so that the server is there before any test is guarded."""
    return kind_of(request)


@pytest.fixture
def kind(kind_of_session: Kind, request: pytest.FixtureRequest) -> Iterator[Kind]:
    """A kind of server. The clients that a test opens are closed at its end."""
    request.node.user_properties.append(("engine", kind_of_session.name))  # the summary counts it
    yield kind_of_session
    kind_of_session.close()


@pytest.fixture
def base() -> bytes:
    """A namespace of the test's own."""
    return base_of_its_own()


@pytest.fixture
def backend(kind: Kind, base: bytes) -> Backend:
    """A client of it."""
    return kind.open(base)
