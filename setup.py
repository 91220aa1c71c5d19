"""Extensions only: every `.pyx` under `src/occamdb/` becomes one compiled module.

`OCCAMDB_ONLY=occamdb.engine.store._store,...` builds just the named modules, `none` nothing;
`OCCAMDB_JOBS=n` bounds the parallel compilers (default: one a core).
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

METADATA_ONLY = {"sdist", "egg_info", "dist_info", "--version", "--name"}
PACKAGES = ("ipc", "engine", "primitives")
# Drivers for the tests: built beside the sources (`make install`), never for a wheel.
TESTING = ("_testing",) if "--inplace" in sys.argv else ()
# -g0: a third less to write, and nobody debugs generated C; Cython compares signed with unsigned all the time.
FLAGS = ["-O3", "-g0", "-fno-strict-aliasing", "-Wno-unused-function", "-Wno-sign-compare"]
JOBS = int(os.environ.get("OCCAMDB_JOBS", "0")) or os.cpu_count() or 1


def extensions() -> list[Extension]:
    """Name sources through `src/`, so that `cimport occamdb.ipc._atomics` resolves."""
    only = set(filter(None, os.environ.get("OCCAMDB_ONLY", "").split(",")))
    found = []
    for package in PACKAGES + TESTING:
        folder = Path(__file__).parent / "src/occamdb" / package
        for source in sorted(folder.rglob("*.pyx")):
            inside = source.relative_to(folder).with_suffix("")
            name = ".".join(["occamdb", package, *inside.parts])
            if not only or name in only:
                path = f"src/occamdb/{package}/{inside.as_posix()}.pyx"
                found.append(Extension(name, [path], extra_compile_args=FLAGS))
    return found


def translated(modules: list[Extension]) -> list[Extension]:
    """The modules as C, one process a module; only sources that changed."""
    return cythonize(
        modules,
        include_path=["src"],
        build_dir="build",
        nthreads=min(JOBS, len(modules)) if len(modules) > 1 else 0,
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
        },
    )


def main() -> None:
    """Hand over to setuptools, which compiles one module a core. Describing the project translates nothing."""
    modules = extensions()
    only_described = bool(METADATA_ONLY.intersection(sys.argv[1:]))
    setup(
        options={"build_ext": {"parallel": JOBS}},
        ext_modules=modules if only_described else translated(modules),
    )


if __name__ == "__main__":
    main()
