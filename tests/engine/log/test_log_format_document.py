"""The worked example in docs/log-format.md is what the code writes."""

import re
from pathlib import Path

from occamdb.engine.log.wal_format import BeginTxn, CommitTxn, SegmentHeader, Write, encode_entry

DOCUMENT = Path(__file__).parents[3] / "docs" / "log-format.md"


def example() -> dict[tuple[str, int], bytes]:
    text = DOCUMENT.read_text().split("### Example")[1].split("\n## ")[0]
    found = re.findall(r"    (\w+), at (\d+)\n((?:    (?:[0-9a-f]{2} ?)+\n)+)", text)
    return {(name, int(offset)): bytes.fromhex(digits) for name, offset, digits in found}


def test_example() -> None:
    header = SegmentHeader(bytes(range(16)), 1, 0, 1, 0).encode()
    seed = int.from_bytes(header[-4:], "little")
    begin = encode_entry(BeginTxn(7, 1, bytes(16), 1_700_000_000_000_000_000, 80), seed, 80)
    write = encode_entry(Write(1, 0, b"key", b"value"), seed, 137)
    commit = encode_entry(CommitTxn(7, 1, 1, 1), seed, 178)
    assert example() == {
        ("header", 0): header,
        ("BeginTxn", 80): begin,
        ("Write", 137): write,
        ("CommitTxn", 178): commit,
    }
