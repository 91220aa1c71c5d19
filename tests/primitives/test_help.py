"""Interactive help: every operation shows its real signature, a docstring and an example, in both of its forms."""

import inspect
import re
import rlcompleter
from typing import Any

import pytest

import occamdb
from occamdb.engine.model.public_types import RunId
from occamdb.primitives import EventLog, KVStore, Leases, RunIndex, StateCell, Steps, Tasks, TraceStore
from occamdb.primitives.operations import Operation

FACADES: dict[str, Any] = {
    "kv": KVStore,
    "events": EventLog,
    "cells": StateCell,
    "traces": TraceStore,
    "runs": RunIndex,
    "tasks": Tasks,
}
OTHERS: dict[str, Any] = {
    "leases": Leases,
    "steps": Steps,
}  # what takes or gives functions is not an `Operation`
FACADES |= OTHERS


def operations(name: str) -> list[str]:
    return sorted(
        key for key, value in vars(FACADES[name]).items() if isinstance(value, Operation) and key[0] != "_"
    )


@pytest.mark.parametrize("name", FACADES)
def test_every_operation_shows_its_signature_and_an_example(db: Any, run: RunId, name: str) -> None:
    found = operations(name)
    assert len(found) >= (4 if name in OTHERS else 9)
    with db.begin(run) as txn:
        for key in found:
            operation = vars(FACADES[name])[key]
            written = [*inspect.signature(operation.body).parameters][1:]
            outside = inspect.signature(getattr(getattr(db, name), key))
            inside = inspect.signature(getattr(getattr(txn, name), key))
            first = [] if name == "runs" else ["run_id"]
            assert [p for p in outside.parameters if p != "retry" or p in written] == first + written, key
            assert [*inside.parameters] == written, key
            for call in (getattr(getattr(db, name), key), getattr(getattr(txn, name), key)):
                # An alias, such as create_run_with_options, is the operation under its own name.
                assert getattr(FACADES[name], call.__name__) is operation.body
                doc = inspect.getdoc(call)
                assert doc and doc == inspect.getdoc(getattr(FACADES[name], key)), key
                shown = operation.body.__name__
                assert re.search(rf"^ +.*db\.{name}\.{shown}\(", doc, re.MULTILINE), key


def test_help_prints_what_the_user_writes(db: Any, capsys: pytest.CaptureFixture[str]) -> None:
    help(db.kv.put)
    shown = capsys.readouterr().out
    assert "put(run_id" in shown and "ttl" in shown and "time to live" in shown
    help(occamdb.KVStore)
    shown = capsys.readouterr().out
    assert "put_many(self, items" in shown and "delete_many(self, keys" in shown
    help(occamdb.open)
    shown = capsys.readouterr().out
    assert "open(" in shown and "durability" in shown and "open_database" not in shown


@pytest.mark.parametrize("name", FACADES)
def test_the_prompt_completes_and_members_can_be_listed(db: Any, name: str) -> None:
    completer = rlcompleter.Completer({"db": db})
    matches: list[str] = []
    while (match := completer.complete(f"db.{name}.", len(matches))) is not None:
        matches.append(match.partition("(")[0])
    assert {f"db.{name}.{key}" for key in operations(name)} <= set(matches)
    members = dict(inspect.getmembers(getattr(db, name)))
    assert set(operations(name)) <= set(members)
    plumbing = {"auditor", "inside", "name", "now_us", "raw", "reserved", "space", "tag"}
    assert not plumbing & set(dir(getattr(db, name)))
    assert {"kv", "scan", "exists", "increment", "path"} <= set(dir(db))
    assert not {"attachment", "first_key", "handle", "namespace_", "prefix_of", "space"} & set(dir(db))
