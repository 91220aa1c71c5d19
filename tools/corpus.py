"""Which files the demo indexes and what it finds in them: pure functions of the directory's content.

1. The list is sorted and the same for every process that looks at an unchanged directory.
2. `count_words` of the same bytes is the same in every process; the demo's recount depends on it.
"""

from __future__ import annotations

import os
import re
import stat
import sysconfig
from collections import Counter
from pathlib import Path

FILE_SIZE_MAX = 4 << 20  # larger ones are data, not text somebody wrote
WORD_LENGTH_MAX = 40  # longer ones are base64 and the like
_PROBE_SIZE = 8192
_SKIPPED_DIRECTORIES = {"site-packages", "dist-packages", "node_modules", "__pycache__", "build", "venv"}
_WORD = re.compile(r"[^\W\d_][^\W_]*")


def default_directory() -> Path:
    """The running Python's standard library: thousands of real files on every machine."""
    return Path(sysconfig.get_paths()["stdlib"])


def text_files(directory: Path) -> list[str]:
    """Paths of the text files below `directory`, relative to it, sorted.

    Skips hidden and generated directories, symbolic links, what cannot be read, and files with a NUL byte
    near the start (binaries).

    Args:
      directory: an existing directory.

    Returns:
      Relative paths with `/` between parts. Costs one read of 8 KiB a file.
    """
    found = []
    for place, directories, names in os.walk(directory):
        directories[:] = [d for d in directories if d not in _SKIPPED_DIRECTORIES and not d.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and _is_text(path):
                found.append(path.relative_to(directory).as_posix())
    return sorted(found)


def count_words(path: Path) -> Counter[str]:
    """How often each word (letters, then letters and digits; case folded) occurs in a file.

    Bytes that are not UTF-8 separate words. A file that vanished since it was listed has no words.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return Counter()
    counts: Counter[str] = Counter(_WORD.findall(text.casefold()))
    for word in [word for word in counts if len(word) > WORD_LENGTH_MAX]:
        del counts[word]
    return counts


def count_all(directory: Path, files: list[str]) -> Counter[str]:
    """The whole count by one plain process: what the shared result is compared with."""
    total: Counter[str] = Counter()
    for name in files:
        total.update(count_words(directory / name))
    return total


def _is_text(path: Path) -> bool:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= FILE_SIZE_MAX:
            return False
        with path.open("rb") as file:
            return b"\0" not in file.read(_PROBE_SIZE)
    except OSError:
        return False
