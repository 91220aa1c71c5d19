"""Sparklines as text and as SVG."""

import math
from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from occamdb.tools.pictures import sparkline, sparkline_svg
from occamdb.tools.pictures.sparkline import BLOCKS, MISSING

numbers = st.lists(st.one_of(st.none(), st.floats(), st.integers(-5, 10**12)), max_size=50)


def test_the_largest_is_a_full_block_and_only_zero_an_empty_one() -> None:
    assert sparkline([0, 1, 50, 100]) == "▁▂▅█"
    assert sparkline([0, 0]) == "▁▁" and sparkline([]) == ""
    assert sparkline([1, None, math.nan, -3, 4]) == "▃  ▁█"


def test_only_the_last_are_shown() -> None:
    assert sparkline(range(100), 3) == "███" and len(sparkline(range(5), 8)) == 5
    assert sparkline([1, 2], 0) == ""


@given(numbers)
def test_a_sparkline_has_a_character_for_each_number_in_their_order(values: list[float | None]) -> None:
    text = sparkline(values)
    assert len(text) == len(values) and set(text) <= {*BLOCKS, MISSING}
    seen = [(v, BLOCKS.index(c)) for v, c in zip(values, text, strict=True) if c != MISSING and v is not None]
    assert all(a <= b for (_, a), (_, b) in pairwise(sorted(seen)))


@given(numbers, st.text())
def test_a_drawn_sparkline_is_well_formed_and_stays_in_its_box(
    values: list[float | None], title: str
) -> None:
    drawn = ElementTree.fromstring(sparkline_svg(values, width=50, height=10, title=title))
    for path in drawn.iter("{http://www.w3.org/2000/svg}path"):
        points = path.get("d", "").replace("M", "L").replace("h0.1", "").split("L")
        for point in filter(None, (each.partition("V")[0] for each in points)):
            x, y = map(float, point.split())
            assert 0 <= x <= 50 and 0 <= y <= 10
