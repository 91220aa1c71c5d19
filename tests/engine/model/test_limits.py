"""Limits and sizes written as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb.engine.model.errors import SettingsError
from occamdb.engine.model.limits import (
    GIB,
    KIB,
    MIB,
    PREFIX_SIZE_MAX,
    Limits,
    check_number,
    parse_size,
    sized,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("64MiB", 64 * MIB),
        ("64 mib", 64 * MIB),
        (" 64 M ", 64 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("100kB", 100_000),
        ("2 GB", 2_000_000_000),
        ("1_000b", 1_000),
    ],
)
def test_sizes_as_text(text: str, size: int) -> None:
    assert parse_size("x", text) == size


@pytest.mark.parametrize(
    "wrong", ["", "MiB", "-1", "1 TB", "64 MiB!", "0.1", "1.3b", 1.5, None, True, b"1", "١"]
)
def test_what_is_no_size(wrong: object) -> None:
    if wrong == "١":  # digits of other scripts count as digits to `re`; they are read as what they say
        assert parse_size("x", wrong) == 1
        return
    with pytest.raises(SettingsError, match=r"ring_size = .* is not a size") as caught:
        parse_size("ring_size", wrong)
    assert caught.value.setting == "ring_size" and "MiB" in caught.value.hint


@given(st.integers(0, 2**50))
def test_sized_reads_back(size: int) -> None:
    assert parse_size("x", sized(size).replace(",", "").replace(" bytes", "")) == size


def test_defaults_are_those_of_the_specification() -> None:
    limits = Limits()
    assert (limits.key_size_max, limits.value_size_max) == (8 * KIB, 64 * MIB)
    assert limits.transaction_size_max == 256 * MIB
    assert limits.stored_key_size_max == 8 * KIB + PREFIX_SIZE_MAX


def test_text_becomes_bytes() -> None:
    assert Limits(key_size_max="1KiB") == Limits(key_size_max=1024)  # type: ignore[arg-type]


def test_every_key_fits_the_formats() -> None:
    assert Limits(key_size_max=60 * KIB).stored_key_size_max < 2**16


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_size_max", 0),
        ("key_size_max", 61 * KIB),
        ("value_size_max", 2 * GIB),
        ("transaction_size_max", 1),
    ],
)
def test_out_of_range_names_setting_value_and_range(name: str, value: int) -> None:
    with pytest.raises(SettingsError) as caught:
        Limits(**{name: value})
    error = caught.value
    assert error.setting == name and name in error.message
    assert error.details["value"] == value and "to" in error.message
    assert not error.details["min"] <= value <= error.details["max"]


@pytest.mark.parametrize("wrong", ["1", None, True, float("nan")])
def test_numbers_are_numbers(wrong: object) -> None:
    with pytest.raises(SettingsError, match="sync_interval"):
        check_number("sync_interval", wrong, 0, 1, whole=False)


def test_counts_are_whole() -> None:
    assert check_number("n", 3, 1, 4, whole=True) == 3
    with pytest.raises(SettingsError, match="whole number"):
        check_number("n", 3.0, 1, 4, whole=True)
