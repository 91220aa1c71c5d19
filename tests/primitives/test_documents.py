"""What the guide and the README of the primitives say is so: their code runs, their example is the encoding."""

import hashlib
import re
from pathlib import Path

import pytest

from occamdb.primitives.event_log import canonical_encoding, canonical_payload
from tests.conftest import stop_coordinator

ROOT = Path(__file__).parent.parent.parent
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = PYTHON.findall((ROOT / "docs" / "guide.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 6
    namespace: dict[str, object] = {"__name__": "guide"}
    try:
        for block in blocks:
            exec(compile(block, "guide.md", "exec"), namespace)
    finally:
        namespace["db"].close()  # type: ignore[attr-defined]
        for path in tmp_path.glob("*.db"):
            stop_coordinator(path)


def test_the_worked_example_is_the_encoding() -> None:
    text = (ROOT / "primitives" / "README.md").read_text(encoding="utf-8")
    payload = canonical_payload({"file": "a.py", "at": [3, 0.5]})
    body = canonical_encoding(0, "found", payload, 1_700_000_000_000_000, bytes(32))
    example = text[text.index("    95 ") : text.index("    SHA-256: ")]
    shown = bytes.fromhex("".join(line.split(";")[0] for line in example.splitlines()))
    assert body == shown + bytes(32)
    assert f"SHA-256: {hashlib.sha256(body).hexdigest()}" in text


def test_the_example_primitive_of_the_readme_is_a_whole_one() -> None:
    (block,) = PYTHON.findall((ROOT / "primitives" / "README.md").read_text(encoding="utf-8"))
    # Another name than the example's: registration lasts as long as the process.
    namespace: dict[str, object] = {}
    exec(compile(block.replace('"scores"', '"readme_scores"'), "README.md", "exec"), namespace)

    import occamdb

    with occamdb.open_in_memory() as db:
        scores = getattr(db, "readme_scores")  # noqa: B009
        run = occamdb.RunId.new()
        assert scores.add(run, "ann", 5) == scores.of(run, "ann") == 5
