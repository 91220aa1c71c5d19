"""The `occamdb` command. Its packages are an extra, so it says what to install where they are missing."""

from __future__ import annotations

import sys

__all__ = ["main"]

_PACKAGES = frozenset({"typer", "click", "rich"})


def main() -> int:
    """Run the command line; the exit code."""
    try:
        from occamdb.tools.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        print(
            f"occamdb: the command line needs the package {error.name!r}: pip install 'occamdb[cli]'",
            file=sys.stderr,
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
