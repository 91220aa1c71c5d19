"""Pictures are well-formed XML that shows stored text and nothing else."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb.primitives import Thought, ToolCall, Trace
from occamdb.tools.pictures import CSS, brief, swim_lanes, timeline, timeline_svg, xml_text
from occamdb.tools.pictures.axis import duration_words, ticks
from tests.support.trace_forests import NASTY, forests, identity, made, texts

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    svg.encode()  # no half of a surrogate pair is in it
    return ElementTree.fromstring(svg)


@given(forests(max_size=12), texts, st.booleans())
def test_any_text_gives_well_formed_xml(traces: list[Trace], name: str, standalone: bool) -> None:
    text = timeline_svg(
        swim_lanes([(name, traces), ("b", traces[:3])]),
        title=name,
        link=lambda bar: f"#{bar.label}",
        standalone=standalone,
    )
    drawn = parsed(text.removeprefix('<?xml version="1.0" encoding="UTF-8"?>\n'))
    names = {element.tag.removeprefix(SVG) for element in drawn.iter()}
    assert names <= {"svg", "title", "style", "g", "a", "line", "text", "rect", "path"}
    attributes = {name for element in drawn.iter() for name in element.attrib}
    assert attributes <= {
        *("class", "viewBox", "width", "height", "role", "x", "y", "x1", "x2", "y1", "y2", "rx", "d", "href"),
        *("data-trace", "data-critical"),
    }
    assert ("style" in names) == standalone


@pytest.mark.parametrize("nasty", NASTY)
def test_stored_markup_is_shown_as_text(nasty: str) -> None:
    layout = timeline([made(1, 0, 10, content=ToolCall(nasty, {nasty: nasty}), error=nasty, tags=(nasty,))])
    drawn = parsed(timeline_svg(layout))
    label = [each.text or "" for each in drawn.iter(f"{SVG}text") if not each.get("class")][-1]
    assert label and (label == brief(nasty, 60) or "\\" in label)


def test_a_picture_has_no_script_and_no_style_of_its_own_and_needs_nothing_from_elsewhere() -> None:
    text = timeline_svg(timeline([made(1, 0, 10)]), standalone=True)
    assert "<script" not in text and " style=" not in text and " on" not in re.sub(r">[^<]*<", "><", text)
    addresses = re.findall(r"\w+://[^\s\"]+", text)
    assert addresses == ["http://www.w3.org/2000/svg"]
    assert "prefers-color-scheme: dark" in text and "url(" not in CSS and "@import" not in CSS


def test_each_bar_has_its_colour_its_tooltip_and_its_link() -> None:
    layout = timeline(
        [made(1, 0, 1000, content=ToolCall("search")), made(2, 100, 10, parent=1, error="gone")]
    )
    drawn = parsed(timeline_svg(layout, link=lambda bar: f"#t-{bar.trace_id}" if bar.parent_id else None))
    bars = {each.get("data-trace"): each for each in drawn.iter() if each.get("data-trace")}
    assert bars[identity(1)].tag == f"{SVG}g" and bars[identity(2)].tag == f"{SVG}a"
    assert bars[identity(2)].get("href") == f"#t-{identity(2)}"
    rectangle = bars[identity(2)].find(f"{SVG}rect")
    assert rectangle is not None and rectangle.get("class") == "tl-thought tl-is-error"
    title = bars[identity(2)].find(f"{SVG}title")
    assert title is not None and title.text is not None
    assert title.text.split("\n")[-1] == "failed: gone"
    assert bars[identity(1)].get("data-critical") == "1"


def test_every_label_of_a_small_run_is_drawn_whole() -> None:
    labels = [f"step {n} has {n * 'long '}words" for n in range(4)]
    traces = [made(n, n * 1000, 10, content=Thought(label)) for n, label in enumerate(labels)]
    traces.append(made(9, 4000, parent=3, content=ToolCall("the very last moment")))
    drawn = parsed(timeline_svg(timeline(traces)))
    shown = {each.text: float(each.get("x", "")) for each in drawn.iter(f"{SVG}text")}
    assert {*labels, "the very last moment"} <= set(shown)
    assert all(0 <= x < 1000 for x in shown.values())


def test_every_class_that_is_drawn_has_a_style() -> None:
    traces = [
        made(1, 0, 100, error="x"),
        made(2, 5, is_open=True),
        *(made(n, 0, 9, parent=1) for n in range(3, 90)),
    ]
    text = timeline_svg(swim_lanes([("a", traces), ("b", [])], bars_max=60))
    used = set(re.findall(r"tl-[\w-]+", " ".join(re.findall(r'class="([^"]*)"', text))))
    assert {"tl-group", "tl-path", "tl-busy", "tl-is-open"} <= used
    assert used <= set(re.findall(r"\.(tl-[\w-]+)", CSS))


def test_the_path_is_one_line_from_the_first_start_to_the_last_end() -> None:
    layout = timeline([made(1, 0, 100), made(2, 10, 30, parent=1), made(3, 50, 20, parent=1)])
    drawn = parsed(timeline_svg(layout))
    (line,) = [each for each in drawn.iter(f"{SVG}path") if each.get("class") == "tl-path"]
    words = line.get("d", "")
    assert words.count("M") == 1
    across = [float(x) for x in re.findall(r"[MH]([\d.]+)", words)]
    assert across == sorted(across)
    scale = 1000 / layout.extent
    assert across[0] == 10.0 and across[-1] == pytest.approx(10 + 100 * scale, abs=0.1)


@given(texts, st.integers(1, 30))
def test_text_is_cut_before_it_is_escaped(text: str, length: int) -> None:
    assert len(ElementTree.fromstring(f"<a>{xml_text('x' * 99, length)}</a>").text or "") == length
    ElementTree.fromstring(f'<a b="{xml_text(text, length)}">{xml_text(text)}</a>')


def test_the_brief_of_a_value_costs_no_more_than_its_text() -> None:
    class Counted(list[int]):
        read = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            for each in super().__iter__():
                Counted.read += 1
                yield each

    assert brief(Counted(range(1_000_000)), 20) == "[0, 1, 2, 3, 4, 5, …"
    assert Counted.read < 30
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert brief(deep, 10) == "[[[[[[[[[…"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text\n as it is", "text as it is"),
        ({"a": [1, None, True], "b": "x"}, '{a: [1, null, true], b: "x"}'),
        (b"\x00\xff", "0x00ff"),
        (bytes(100), f"0x{'00' * 64}…"),
        (Thought("hm"), '{content: "hm", confidence: null}'),
        (float("nan"), "nan"),
    ],
)
def test_the_brief_of_values(value: object, expected: str) -> None:
    assert brief(value, 200) == expected


@pytest.mark.parametrize(
    ("microseconds", "words"),
    [
        (0, "0"),
        (250, "250 µs"),
        (12_500, "12.5 ms"),
        (1_500_000, "1.5 s"),
        (125_000_000, "2 min 5 s"),
        (11_400_000_000, "3 h 10 min"),
        (2 * 86_400_000_000, "2 d"),
        (-1_000, "-1 ms"),
    ],
)
def test_durations_in_words(microseconds: int, words: str) -> None:
    assert duration_words(microseconds) == words


@given(st.integers(-(10**9), 10**15), st.integers(1, 10**15))
def test_an_axis_has_a_few_round_ticks(first: int, span: int) -> None:
    found = [at for at, _ in ticks(first, first + span)]
    assert len(found) <= 11
    assert all(first <= at <= first + span for at in found)
    if len(found) > 2:
        assert len({b - a for a, b in pairwise(found)}) == 1
    assert len(found) >= (3 if span > 20 else 1)


def test_a_window_cuts_bars_and_path_at_its_edges() -> None:
    layout = timeline([made(1, 0, 1_000_000), made(2, 400_000, 300_000, parent=1)], window=(500_000, 600_000))
    drawn = parsed(timeline_svg(layout))
    boxes = [(float(r.get("x", "")), float(r.get("width", ""))) for r in drawn.iter(f"{SVG}rect")]
    assert len(boxes) == 2 and all(x == 10 and 0 < width <= 1000 for x, width in boxes)
    across = re.findall(r"[MH](-?[\d.]+)", next(drawn.iter(f"{SVG}path")).get("d", ""))
    assert all(10 <= float(x) <= 1010 for x in across)
