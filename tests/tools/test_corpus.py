"""What the demo reads: the file list and the words."""

import os
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from occamdb.tools.corpus import (
    FILE_SIZE_MAX,
    WORD_LENGTH_MAX,
    count_all,
    count_words,
    default_directory,
    text_files,
)


def test_the_list_is_sorted_and_holds_text_only(tmp_path: Path) -> None:
    for name, content in {
        "b.txt": b"text",
        "a/z.py": b"code",
        "a/binary.so": b"\x7fELF\0\0",
        "empty": b"",
        ".hidden": b"x",
        ".git/config": b"x",
        "site-packages/p.py": b"x",
        "__pycache__/c.py": b"x",
        "latin1.txt": "größe".encode("latin-1"),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(FILE_SIZE_MAX + 1)
    os.mkfifo(tmp_path / "fifo")
    assert text_files(tmp_path) == ["a/z.py", "b.txt", "latin1.txt"]


def test_words_are_folded_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(f"The the THE snake_case x2 2x Größe {'y' * (WORD_LENGTH_MAX + 1)}", encoding="utf-8")
    # Case folding writes "ß" as "ss"; digits do not begin a word.
    assert count_words(path) == Counter({"the": 3, "snake": 1, "case": 1, "x2": 1, "x": 1, "grösse": 1})


def test_a_vanished_file_has_no_words(tmp_path: Path) -> None:
    assert count_words(tmp_path / "gone") == Counter()


def test_the_whole_is_the_sum_of_the_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("one two two" * (number + 1))
    files = text_files(tmp_path)
    assert count_all(tmp_path, files) == sum((count_words(tmp_path / f) for f in files), Counter())


def test_the_standard_library_is_a_corpus_of_thousands_of_files() -> None:
    files = text_files(default_directory())
    assert len(files) > 1000
    assert "json/decoder.py" in files
    assert not any("site-packages" in name for name in files)


@given(data=st.binary(max_size=300))
def test_any_bytes_can_be_counted(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(data)
    counts = count_words(path)
    assert counts == count_words(path)
    assert all(1 <= len(word) <= WORD_LENGTH_MAX and word == word.casefold() for word in counts)
