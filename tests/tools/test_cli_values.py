"""Values and keys on the command line: what is read is refused or stored as meant, what is printed is JSON."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import occamdb
from tests.tools.shell import RUN, Shell, command, run


def strict(text: str) -> Any:
    """JSON as other programs read it: Python's own reader takes NaN and Infinity too."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON: {text}")

    return json.loads(text, parse_constant=refuse)


# --- Values --------------------------------------------------------------------------------------


def test_floats_that_json_has_no_number_for_are_printed_as_json(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put(RUN, "k", [math.nan, math.inf, {"low": -math.inf}, 1.5])
    expected = [{"$float": "nan"}, {"$float": "inf"}, {"low": {"$float": "-inf"}}, 1.5]
    assert strict(shell("get", "DB", RUN, "k")) == expected
    assert strict(shell("get", "DB", RUN, "k", "--json"))["value"] == expected
    assert strict(shell("scan", "DB", RUN, "--json"))["value"] == expected
    written = [strict(line) for line in shell("wal", "dump", "DB", "--json").splitlines()]
    assert [row["value"] for row in written if row["type"] == "Write"] == [expected]
    assert '{"$float": "nan"}' in shell("wal", "dump", "DB")


@pytest.mark.parametrize("text", ["1e999", "[-1e999]", '{"a": [1e400]}', "Infinity"])
def test_infinities_are_refused_however_they_are_written(shell: Shell, text: str) -> None:
    shell("put", "DB", RUN, "k", text, code=1)
    assert "is not a JSON value" in shell.error
    assert "occam.argument" in shell.error


def test_floats_up_to_the_largest_are_stored(shell: Shell) -> None:
    shell("put", "DB", RUN, "k", "[1.7976931348623157e308, 1e-999]")
    assert shell.json("get", "DB", RUN, "k") == [1.7976931348623157e308, 0.0]


def test_a_value_is_read_from_standard_input(shell: Shell) -> None:
    done = run(command("put", shell.path, RUN, "k", "-"), stdin='{"a": "ü"}\n'.encode())
    assert done.returncode == 0, done.stderr
    assert shell.json("get", "DB", RUN, "k") == {"a": "ü"}


def test_standard_input_that_is_not_utf8_is_an_error_with_a_hint(database_path: Path) -> None:
    done = run(command("put", database_path, RUN, "k", "-"), stdin=b'"ab\xff"')
    assert done.returncode == 1
    assert "not UTF-8: byte 0xff at position 3" in done.stderr
    assert "hint" in done.stderr
    assert "Traceback" not in done.stderr
    assert not database_path.exists()


@pytest.mark.parametrize("depth", [200, 3_000, 100_000])
def test_a_value_that_nests_too_deep_is_an_error_with_a_hint(database_path: Path, depth: int) -> None:
    done = run(command("put", database_path, RUN, "k", "-"), stdin=b"[" * depth + b"]" * depth)
    assert done.returncode == 1
    assert "deeper than" in done.stderr
    assert "hint" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1_000, "the value is not printed in full"


def test_the_deepest_value_that_can_be_stored_is_printed(shell: Shell) -> None:
    text = "[" * 128 + "]" * 128
    shell("put", "DB", RUN, "k", text)
    assert shell("get", "DB", RUN, "k") == f"{text}\n"
