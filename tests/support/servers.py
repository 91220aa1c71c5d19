"""The servers that tests use: `postgres` and `etcd`, one of each for a whole process of tests.

They run only when OCCAMDB_TEST_CLUSTER=1 is set, as `make test-cluster` does. They end with the process of the tests,
also when it is killed. Both are single servers that do not sync to disk: what is tested with them is what a database
means, not what survives. Tests of faults make clusters of their own, with `clustered`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from occamdb.stress.clusters import EtcdCluster, PostgresCluster

__all__ = ["clustered", "etcd", "needs_servers", "postgres", "server_url"]

SWITCH = "OCCAMDB_TEST_CLUSTER"
WHY_NOT = f"needs servers: make test-cluster (or {SWITCH}=1 where PostgreSQL and etcd are installed)"


def needs_servers() -> None:
    """Skip the test unless servers are wanted."""
    if os.environ.get(SWITCH) != "1":
        pytest.skip(WHY_NOT)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """One PostgreSQL server. `url()` is what `occamdb.open` takes."""
    needs_servers()
    with PostgresCluster(standbys=0, fsync=False) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdCluster]:
    """One member of etcd. `url()` is what `occamdb.open` takes."""
    needs_servers()
    with EtcdCluster(members=1) as cluster:
        yield cluster


@pytest.fixture
def server_url(request: pytest.FixtureRequest) -> str:
    """The address of the server that the test's parameter names: "postgres" or "etcd"."""
    cluster = request.getfixturevalue(str(request.param))
    return str(cluster.url())


@pytest.fixture
def clustered() -> None:
    """The test starts servers of its own."""
    needs_servers()
