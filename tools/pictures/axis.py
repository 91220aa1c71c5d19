"""A time axis: round ticks, and durations as words."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["duration_words", "ticks"]

_SECOND = 1_000_000
_MINUTE, _HOUR, _DAY = 60 * _SECOND, 3_600 * _SECOND, 86_400 * _SECOND
_STEPS = [
    *(unit * factor for unit in (1, 10, 100, 1_000, 10_000, 100_000, _SECOND) for factor in (1, 2, 5)),
    *(10 * _SECOND, 15 * _SECOND, 30 * _SECOND),
    *(_MINUTE * factor for factor in (1, 2, 5, 10, 15, 30)),
    *(_HOUR * factor for factor in (1, 2, 3, 6, 12)),
]


def ticks(first: int, last: int, count_max: int = 10) -> Iterator[tuple[int, str]]:
    """Round moments from `first` to `last`, in microseconds, with their words; at most about so many."""
    span = max(1, last - first)
    step = next((step for step in _STEPS if span <= step * count_max), _DAY)
    while span > step * count_max:
        step *= 2
    for at in range(-(-first // step) * step, last + 1, step):
        yield at, duration_words(at)


def duration_words(microseconds: int) -> str:
    """A duration for people, to about three digits: "250 µs", "12.5 ms", "1.5 s", "2 min 5 s", "3 h 10 min"."""
    if microseconds < 0:
        return f"-{duration_words(-microseconds)}"
    if microseconds < 1_000:
        return "0" if microseconds == 0 else f"{microseconds} µs"
    if microseconds < _SECOND:
        return f"{_three_digits(microseconds / 1_000)} ms"
    if microseconds < _MINUTE:
        return f"{_three_digits(microseconds / _SECOND)} s"
    if microseconds < _HOUR:
        return _two_units(microseconds, (_MINUTE, "min"), (_SECOND, "s"))
    if microseconds < _DAY:
        return _two_units(microseconds, (_HOUR, "h"), (_MINUTE, "min"))
    return _two_units(microseconds, (_DAY, "d"), (_HOUR, "h"))


def _two_units(microseconds: int, large: tuple[int, str], small: tuple[int, str]) -> str:
    whole, rest = divmod(microseconds // small[0], large[0] // small[0])
    return f"{whole:,} {large[1]} {rest} {small[1]}" if rest else f"{whole:,} {large[1]}"


def _three_digits(number: float) -> str:
    decimals = 0 if number >= 100 else 1 if number >= 10 else 2
    text = f"{number:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
