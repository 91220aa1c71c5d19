"""Directories of these tests lie in memory."""

from tests.support.memory_paths import tmp_path

__all__ = ["tmp_path"]
