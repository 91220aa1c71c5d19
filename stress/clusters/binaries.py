"""Where the programs of the servers are, and what to install when they are missing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from occamdb.stress.clusters.keeper import ClusterError

__all__ = ["etcd_program", "etcd_version", "postgres_programs"]

POSTGRES_MIN, ETCD_MIN = 14, (3, 4)
POSTGRES_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin")


def postgres_programs() -> Path:
    """The directory of initdb, postgres and psql of the newest PostgreSQL from 14.

    Raises:
      ClusterError: there is none, with what to install.
    """
    found = [place for pattern in POSTGRES_PLACES for place in Path("/").glob(pattern[1:])]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    versions = {place: _major(place / "postgres") for place in found}
    usable = {place: major for place, major in versions.items() if major >= POSTGRES_MIN}
    if not usable:
        raise ClusterError(
            f"no PostgreSQL from {POSTGRES_MIN} was found in {', '.join(POSTGRES_PLACES)} or on PATH; "
            "install it: apt-get install postgresql"
        )
    return max(usable, key=lambda place: usable[place])


def etcd_program() -> Path:
    """The program etcd, from 3.4.

    Raises:
      ClusterError: there is none, with what to install.
    """
    found = shutil.which("etcd")
    version = etcd_version(Path(found)) if found else (0, 0)
    if not found or version < ETCD_MIN:
        seen = f"{found} is {version[0]}.{version[1]}" if found else "it is not on PATH"
        raise ClusterError(f"etcd from 3.4 is needed, and {seen}; install it: apt-get install etcd-server")
    return Path(found)


def etcd_version(program: Path) -> tuple[int, int]:
    """Major and minor number."""
    match = re.search(r"etcd Version: (\d+)\.(\d+)", _said_by(program))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _major(program: Path) -> int:
    match = re.search(r"PostgreSQL\) (\d+)", _said_by(program))
    return int(match[1]) if match else 0


def _said_by(program: Path) -> str:
    try:
        return subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except OSError:
        return ""
