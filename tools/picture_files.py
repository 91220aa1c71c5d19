"""Files that a command makes for people: whole or not at all, and never in place of another one unasked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import typer

from occamdb.engine.model.errors import AlreadyExistsError

__all__ = ["ForceOption", "write_file"]

ForceOption = Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")]


def write_file(path: Path, pieces: Iterable[str], *, force: bool) -> int:
    """Write a file that only this user can read; returns its size in bytes.

    It is written beside its place and then given its name, so a full disk or a kill leaves no half of a file there.

    Raises:
      AlreadyExistsError: there is something of that name, and `force` is false.
      OSError: it could not be written.
    """
    if not force and os.path.lexists(path):
        raise _exists(path)
    with NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name[:50]}.", delete=False
    ) as file:
        try:
            for piece in pieces:
                file.write(piece)
            file.flush()
            size = os.fstat(file.fileno()).st_size
            if force:
                os.replace(file.name, path)
                return size
            os.link(file.name, path)  # fails where somebody made the file meanwhile
        except FileExistsError:
            os.unlink(file.name)
            raise _exists(path) from None
        except BaseException:
            os.unlink(file.name)
            raise
    os.unlink(file.name)
    return size


def _exists(path: Path) -> AlreadyExistsError:
    return AlreadyExistsError(f"{path} exists", hint="--force replaces it; another name keeps both")
