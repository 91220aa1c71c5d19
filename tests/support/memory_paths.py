"""Directories of these tests lie in memory: they sync thousands of times, and what a sync does is traced, not timed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.log_driver import memory_directory


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with memory_directory(tmp_path) as path:
        yield path
