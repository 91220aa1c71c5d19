"""The table in docs/figures.md, made from what `occamdb stats --explain` prints. Run it after a change of the words."""

from pathlib import Path

from occamdb.tools.figure_words import markdown

PAGE = Path(__file__).parent.parent.parent / "docs" / "figures.md"
BEGIN, END = "<!-- figures: made from the code -->\n", "<!-- end of figures -->\n"


def page_with_table(text: str) -> str:
    """The page with the table that the code makes."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + "".join(f"{line}\n" for line in markdown()) + END + tail


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
