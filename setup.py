"""Extensions only: every `.pyx` under `src/` becomes one compiled module.

`OCCAMDB_ONLY=occamdb.engine._store,...` builds just the named modules (handy while working on one).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
PACKAGES = ("ipc", "engine")


def extensions() -> list[Extension]:
    """Name sources through `src/`, so that `cimport occamdb.ipc._atomics` resolves."""
    only = set(filter(None, os.environ.get("OCCAMDB_ONLY", "").split(",")))
    found = []
    for package in PACKAGES:
        for source in sorted((ROOT / package).glob("*.pyx")):
            name = f"occamdb.{package}.{source.stem}"
            if not only or name in only:
                found.append(
                    Extension(
                        name,
                        [f"src/occamdb/{package}/{source.name}"],
                        extra_compile_args=["-O3", "-fno-strict-aliasing", "-Wno-unused-function"],
                    )
                )
    return found


setup(
    ext_modules=cythonize(
        extensions(),
        include_path=["src"],
        build_dir="build",
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
        },
    )
)
