"""The command line: one `register` for each group of commands, and the one place where errors become exit codes.

Exit codes: 0 done; 1 an error (message and hint on stderr) or a check that failed; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import occamdb
from occamdb.ipc.errors import OccamError
from occamdb.tools import (
    backup,
    checking,
    console,
    copying,
    data,
    demo,
    doctor,
    inspect_command,
    leases,
    mcp_command,
    migrating,
    mounted,
    primitives,
    report,
    runs,
    serving,
    stats,
    steps,
    tasks,
    traces,
    wal,
    watch,
)

app = typer.Typer(
    name="occamdb",
    help="occamdb: a database many processes on one machine share through memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


for group in (
    serving,
    stats,
    data,
    watch,
    runs,
    primitives,
    tasks,
    traces,
    report,
    leases,
    steps,
    backup,
    copying,
    checking,
    migrating,
    wal,
    doctor,
    demo,
    inspect_command,
    mcp_command,
    mounted,
):
    group.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.echo(f"occamdb {occamdb.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """occamdb: a database many processes on one machine share through memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      arguments: without the program's name; None: those of this process.

    Returns:
      The exit code.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="occamdb")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except OccamError as error:
        console.show_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`occamdb scan ... | head`); the interpreter would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        console.show_system_error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
