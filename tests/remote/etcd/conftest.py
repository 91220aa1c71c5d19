"""One etcd for the tests of this folder, and a prefix of its own for each test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb.engine.remote.etcd import EtcdBackend, open_backend
from tests.support.etcd_servers import EtcdCluster

BASE = b"\0\0\0"

Opening = Callable[..., EtcdBackend]
_SERVERS = {"etcd", "three", "small", "guarded"}  # fixtures that start one
_numbers = iter(range(1, 1_000_000))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    why = None
    if os.environ.get("OCCAMDB_TEST_CLUSTER") != "1":
        why = "tests against servers run with OCCAMDB_TEST_CLUSTER=1 (make test-cluster)"
    elif shutil.which("etcd") is None:
        why = "etcd is not installed: apt-get install etcd-server"
    for item in items:
        needs = _SERVERS.intersection(getattr(item, "fixturenames", ()))
        if why is not None and needs and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def url(etcd: EtcdCluster) -> str:
    return etcd.url(f"test-{os.getpid()}-{next(_numbers)}")


@pytest.fixture
def opened(url: str) -> Iterator[Opening]:
    """Opens backends of one prefix, and closes them at the end."""
    made: list[EtcdBackend] = []

    def opening(base: bytes = BASE, **settings: Any) -> EtcdBackend:
        made.append(
            open_backend(settings.pop("at", url), base, **{"timeout": 10.0, "compact": False, **settings})
        )
        return made[-1]

    yield opening
    for backend in made:
        backend.close()


@pytest.fixture
def backend(opened: Opening) -> EtcdBackend:
    return opened()
