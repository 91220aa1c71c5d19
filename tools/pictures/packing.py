"""Which row each bar lies in.

1. A bar has a block of rows: its own, and below it those of everything under it. Blocks nest as traces do.
2. Blocks that share a row do not share any time, so bars in one row never overlap.
3. Blocks are placed in order of their start, each as high as it can lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from occamdb.tools.pictures.grouping import Item

__all__ = ["pack"]

_ALWAYS = -(1 << 63)  # until when a row is taken that nothing lies in: before any time


def pack(tops: Sequence[Item], room: Callable[[Item], int]) -> int:
    """Set `row` and `height` of all items.

    Args:
      tops: the items at the top.
      room: until when the row of an item is taken: at least until its end.

    Returns:
      How many rows there are.
    """
    ordered: list[Item] = []
    stack = list(reversed(tops))
    while stack:
        item = stack.pop()
        ordered.append(item)
        stack.extend(reversed(item.children))
    spans: dict[int, tuple[int, int]] = {}
    for item in reversed(ordered):  # what is below comes first
        below = [spans[id(child)] for child in item.children]
        first = min([item.start, *(start for start, _ in below)])
        last = max([room(item), *(end for _, end in below)])
        spans[id(item)] = first, last
        item.height = 1 + _place(item.children, spans)
    height = _place(tops, spans)
    for item in ordered:  # parents first: until here `row` counts from the block that it lies in
        for child in item.children:
            child.row += item.row + 1
    return height


def _place(items: Sequence[Item], spans: dict[int, tuple[int, int]]) -> int:
    """Give each block a row among its siblings; returns how many rows they take together."""
    taken: list[int] = []  # until when each row is taken
    for item in sorted(items, key=lambda each: spans[id(each)]):
        first, last = spans[id(item)]
        row = _free_row(taken, first, item.height)
        item.row = row
        taken += [_ALWAYS] * (row + item.height - len(taken))
        taken[row : row + item.height] = [last] * item.height
    return len(taken)


def _free_row(taken: Sequence[int], first: int, height: int) -> int:
    """The first row from which `height` rows are free at a time."""
    row = 0
    for at, until in enumerate(taken):
        if at - row == height:
            break
        if until > first:
            row = at + 1
    return row
