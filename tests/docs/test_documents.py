"""The documents hold together: links lead somewhere, named tests exist, tables say what the code says.

Everything is read from the working tree, so a renamed test or a moved file fails here.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb.stress.workloads import WORKLOADS
from tests.support import reference

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("", "docs", "ipc", "engine", "primitives", "stress", "tools", "tests", "plugins")
LINE_LENGTH_MAX = 120
# Papers that a reader of this repository does not have.
ELSEWHERE = re.compile(
    r"\.\./shared|\b(SPEC|DESIGN|REVIEW|FAULTS|LAYOUT|AUDIT) section|\b(SPEC|DESIGN|FAULTS|LAYOUT)\.md"
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
TEST_NAME = re.compile(r"`(test_\w+)`")


def documents() -> list[Path]:
    found = [*ROOT.glob("*.md")]
    for folder in FOLDERS[1:]:
        found += (ROOT / folder).rglob("*.md")
    return sorted(path for path in found if "node_modules" not in path.parts)


DOCUMENTS = documents()
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The numbered lines outside fenced and indented code, tables and front matter."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith(("    ", "|")):
            yield number, line


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    plain = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r'<a (?:id|name)="([^"]+)">', text))
    headings = [slug(line.lstrip("#")) for _, line in prose(text) if re.match(r"#{1,6} ", line)]
    return named | set(headings)


def broken_links(path: Path, root: Path = ROOT) -> list[str]:
    broken = []
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link, image in LINK.findall(text):
        target = link or image
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        if not place.exists() or not place.is_relative_to(root):
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(place):
            broken.append(f"{target}: no such anchor")
    return broken


def existing_tests() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^\s*def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def test_there_are_documents() -> None:
    wanted = {"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/README.md", "docs/faults.md"}
    assert wanted <= set(NAMES)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_relative_link_and_anchor_resolves(path: Path) -> None:
    assert broken_links(path) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_no_line_of_prose_is_too_long(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        pytest.skip("written by release, an entry a line")
    long = [number for number, line in prose(path.read_text(encoding="utf-8")) if len(line) > LINE_LENGTH_MAX]
    assert long == [], f"{path.relative_to(ROOT)}: lines over {LINE_LENGTH_MAX} characters"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_nothing_refers_to_papers_outside_the_repository(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if ELSEWHERE.search(line)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_test_that_a_document_names_exists(path: Path) -> None:
    named = set(TEST_NAME.findall(path.read_text(encoding="utf-8")))
    assert named - existing_tests() - {p.stem for p in (ROOT / "tests").rglob("test_*.py")} == set()


def test_every_fault_names_a_test_or_says_why_not() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith('| <a id="')]
    assert len(rows) > 40
    silent = [row[:60] for row in rows if not TEST_NAME.search(row) and "No test" not in row]
    assert silent == []


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


def test_the_reference_says_what_the_code_says() -> None:
    text = reference.DOCUMENT.read_text(encoding="utf-8")
    assert text == reference.with_tables(text), "run python -m tests.support.reference"


def test_the_limits_in_the_readme_are_the_defaults() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", "\n".join(reference.setting_rows()), re.MULTILINE))
    stated = re.findall(r"^\| [^|]+ \| ([^|]+) \| `(\w+)` \|$", text, re.MULTILINE)
    assert len(stated) >= 6
    assert [(name, value) for value, name in stated] == [(name, shown[name]) for _, name in stated]


def test_every_line_of_the_coordinators_log_is_one_the_code_writes() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## coordinator.log")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(lines) >= 8
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "engine").rglob("*.py"))
    pieces = [piece for line in lines for piece in line.split("...") if len(piece) > 4]
    assert [piece for piece in pieces if piece not in code] == []


def test_every_workload_is_described() -> None:
    text = (ROOT / "docs" / "verification.md").read_text(encoding="utf-8")
    table = text.partition("## Workloads")[2].partition("\n## ")[0]
    described = set(re.findall(r"`([\w-]+)`", table)) | {f"ycsb-{letter}" for letter in "abcdef"}
    assert set(WORKLOADS) <= described


def test_the_checks_notice(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# A `b` heading\n\n<a id="c1"></a>\n\n[1](#c1) [2](#a-b-heading) [3](#c2) [4](gone.md)\n'
    )
    assert anchors(page) == {"c1", "a-b-heading"}
    broken = [text.split(":")[0] for text in broken_links(page, tmp_path)]
    assert broken == ["#c2", "gone.md"]
    assert [number for number, _ in prose("a\n```\nb\n```\n    c\n| d |\ne\n")] == [1, 7]
    assert ELSEWHERE.search("see DESIGN section 4") and ELSEWHERE.search("../shared/SPEC.md")
