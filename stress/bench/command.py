"""`occamdb bench`: the command, which the command line mounts under the name `bench`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from occamdb.stress.bench.catalogue import all_rows, select_rows
from occamdb.stress.bench.model import FULL, QUICK, RowResult, Scale
from occamdb.stress.bench.report import machine, table_text, to_json, write_json
from occamdb.stress.bench.session import run_rows
from occamdb.stress.bench.stores import PEERS
from occamdb.stress.bench.targets import targets_text

app = typer.Typer(help="Measure occamdb beside its peers.", invoke_without_command=True)


@app.callback()
def bench(
    context: typer.Context,
    peers: Annotated[str, typer.Option(help=f"Peers, comma separated: {', '.join(PEERS)}.")] = "lmdb,sqlite",
    rows: Annotated[
        str, typer.Option(help="Rows, or how they begin, comma separated. All unless given.")
    ] = "",
    repeat: Annotated[int | None, typer.Option(min=1, help="Repetitions of each row.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Length of one sample.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything measured to this file.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw a PNG chart (needs matplotlib).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the data, shorter samples.")] = False,
    list_rows: Annotated[bool, typer.Option("--list", help="List the rows and end.")] = False,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Make the databases in this directory.")
    ] = None,
) -> None:
    """Run rows with all their sides interleaved and print medians, spread and ratios."""
    if context.invoked_subcommand is not None:
        return  # `occamdb bench memory` and the like bring their own options
    if list_rows:
        for row in all_rows():
            typer.echo(f"{row.name:<28} {row.title}")
        return
    run(rows, peers, repeat, seconds, json, chart, quick=quick, directory=directory)


@app.command()
def memory(
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the data.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write everything measured to this file.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Make the databases in this directory.")
    ] = None,
) -> None:
    """The memory profile: bytes a key, garbage of old versions, private memory of workers."""
    run("memory", "", None, None, json, None, quick=quick, directory=directory)


@app.command()
def server(
    url: Annotated[str, typer.Argument(metavar="URL", help="postgresql://… or etcd://…")],
    seconds: Annotated[float, typer.Option(min=0.01, help="Length of one sample.")] = 2.0,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions of each row.")] = 3,
) -> None:
    """A server beside the driver by hand, beside itself and beside a directory: ratios. Leaves namespaces bench-…"""
    from occamdb.stress.bench.servers import server_rows

    with tempfile.TemporaryDirectory(prefix="occamdb-bench-", ignore_cleanup_errors=True) as directory:
        for title, first, second in server_rows(url, Path(directory), seconds, repeat):
            typer.echo(f"{title:<56} {first:>12,.1f} {second:>12,.1f}  ratio {first / second:.2f}")


def run(
    rows: str,
    peers: str,
    repeat: int | None,
    seconds: float | None,
    json: Path | None,
    chart: Path | None,
    *,
    quick: bool,
    directory: Path | None,
) -> None:
    """Measure and report; the arguments are the command's options."""
    wanted = [name for name in peers.split(",") if name]
    unknown = sorted(set(wanted) - set(PEERS))
    if unknown:
        raise typer.BadParameter(f"no such peer: {', '.join(unknown)}; known are {', '.join(PEERS)}")
    try:
        chosen = select_rows([name for name in rows.split(",") if name])
    except KeyError as error:
        raise typer.BadParameter(f"no row is called {error.args[0]!r}; see occamdb bench --list") from None
    draw = _chart_function() if chart else None
    base = QUICK if quick else FULL
    scale = Scale(seconds or base.seconds, repeat or base.repeat, base.size, base.warm_up)
    about = machine()
    results = run_rows(chosen, peers=wanted, scale=scale, directory=directory, progress=_progress)
    _progress("")
    typer.echo(table_text(results))
    specified = targets_text({result.row.name: result for result in results})
    if specified:
        typer.echo("\n" + specified)
    if json:
        write_json(json, to_json(results, scale, about))
    if chart and draw:
        draw(results, chart)


def _chart_function() -> Callable[[Sequence[RowResult], Path], None]:
    """Import the chart before anything is measured, so that a missing matplotlib shows at once."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise typer.BadParameter("--chart needs matplotlib: pip install 'occamdb[bench]'") from None
    from occamdb.stress.bench.chart import draw_chart

    return draw_chart


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{text}", nl=False, err=True)
