"""Values and keys on the command line: what is read is refused or stored as meant, what is printed is JSON."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import occamdb
from tests.support.shell import RUN, Shell, command, run


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


# --- Keys that are not text ----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["0xff00", "ff00", "0XFF00"])
def test_a_key_of_bytes_is_given_in_hexadecimal(shell: Shell, db: occamdb.Database, key: str) -> None:
    db.kv.put(RUN, b"\xff\x00", "bytes")
    shell("get", "DB", RUN, key, code=1)
    assert shell("get", "DB", RUN, key, "--hex") == '"bytes"\n'
    assert shell.json("get", "DB", RUN, key, "--hex", "--json")["key"] == "\udcff\x00"
    shell("put", "DB", RUN, key, "2", "--hex")
    assert db.kv.get(RUN, b"\xff\x00") == 2
    shell("delete", "DB", RUN, key, "--hex")
    assert db.kv.list(RUN) == []
    shell("delete", "DB", RUN, key, "--hex", code=1)
    assert shell.error == "no key 0xff00\n"


def test_what_list_shows_can_be_given_back(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put_many(RUN, {bytes([200 + n, 0, n]): n for n in range(5)})
    for number, shown in enumerate(shell("list", "DB", RUN).split()):
        assert shell("get", "DB", RUN, shown, "--hex") == f"{number}\n"


def test_text_in_hexadecimal_is_the_same_key(shell: Shell) -> None:
    shell("put", "DB", RUN, "0x6b", "1", "--hex")
    assert shell("list", "DB", RUN) == "k\n"
    assert shell.json("get", "DB", RUN, "6b", "--hex", "--json")["key"] == "k"


def test_a_text_key_that_looks_like_hexadecimal_stays_text(shell: Shell) -> None:
    shell("put", "DB", RUN, "0x6b", "1")
    shell("get", "DB", RUN, "k", code=1)
    assert shell("get", "DB", RUN, "0x6b") == "1\n"


def test_ranges_of_bytes_are_given_in_hexadecimal(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put_many(RUN, {b"\xfe": 0, b"\xff\x00": 1, b"\xff\x01": 2, b"\xff\x02": 3})
    assert shell("list", "DB", RUN, "ff", "--hex").split() == ["0xff00", "0xff01", "0xff02"]
    assert shell("list", "DB", RUN, "--hex").split() == ["0xfe", "0xff00", "0xff01", "0xff02"]
    between = ("--start", "0xff", "--end", "0xff02")
    assert shell("list", "DB", RUN, *between, "--hex").split() == ["0xff00", "0xff01"]
    rows = shell.lines("scan", "DB", RUN, "0xff", "--start", "ff01", "--hex", "--json")
    assert [row["value"] for row in rows] == [2, 3]


@pytest.mark.parametrize("key", ["0xf", "xyz", "0xgg", "0x0xff"])
@pytest.mark.parametrize("word", ["get", "put", "delete", "list", "scan"])
def test_bad_hexadecimal_is_an_error_with_a_hint(shell: Shell, word: str, key: str) -> None:
    value = ["1"] if word == "put" else []
    shell(word, "DB", RUN, key, *value, "--hex", code=1)
    assert f"{key!r} is not hexadecimal" in shell.error
    assert "hint" in shell.error
    assert not shell.path.exists()


def test_an_empty_key_of_bytes_is_refused(shell: Shell) -> None:
    shell("put", "DB", RUN, "0x", "1", "--hex", code=1)
    assert "the key is empty" in shell.error
