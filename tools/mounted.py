"""Command groups of `occamdb.stress`, loaded only when they are called."""

from __future__ import annotations

from importlib import import_module

import typer

PANEL = "Trying it out"
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Mount the groups."""
    app.command("stress", context_settings=_FORWARD, rich_help_panel=PANEL, add_help_option=False)(stress)
    app.command("bench", context_settings=_FORWARD, rich_help_panel=PANEL, add_help_option=False)(bench)


def stress(context: typer.Context) -> None:
    """Find out whether occamdb keeps its word on this machine: workloads, checker, fault campaigns."""
    _forward("occamdb.stress.command", context)


def bench(context: typer.Context) -> None:
    """Measure occamdb beside its peers, interleaved in one session."""
    _forward("occamdb.stress.bench.command", context)


def _forward(module: str, context: typer.Context) -> None:
    group: typer.Typer = import_module(module).app
    group(args=context.args, prog_name=context.command_path)
