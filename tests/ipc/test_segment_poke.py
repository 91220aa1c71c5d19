"""Writing into and reading from a segment that nobody here has mapped."""

import os
import resource
from collections.abc import Iterator

import pytest

from occamdb.ipc.errors import SegmentError, SegmentForeignError
from occamdb.ipc.layout import SHM_PREFIX
from occamdb.ipc.segment import (
    SHM_DIRECTORY,
    Segment,
    create_segment,
    peek_segment,
    poke_segment,
    segment_stat,
)


@pytest.fixture
def segment() -> Iterator[Segment]:
    with create_segment(f"/{SHM_PREFIX}{os.getpid():016x}-1-store", 1 << 20, preallocate=0) as made:
        yield made
        made.unlink()


def test_who_has_it_mapped_sees_the_bytes(segment: Segment) -> None:
    assert poke_segment(segment.name, 256, b"\1\0\0\0")
    assert segment.map[255:261] == b"\0\1\0\0\0\0"
    found = segment_stat(segment.name)
    assert found is not None
    assert found.st_size == 1 << 20


def test_no_address_space_is_needed(segment: Segment) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1, before[1]))
    try:
        poked = poke_segment(segment.name, 0, b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert poked
    assert segment.map[0:1] == b"x"


def test_what_is_not_there_is_not_made(segment: Segment) -> None:
    assert not poke_segment(segment.name, (1 << 20) - 3, b"1234")
    assert not poke_segment(segment.name + "x", 0, b"1")
    found = segment_stat(segment.name)
    assert found is not None
    assert found.st_size == 1 << 20


def test_what_is_not_there_is_not_read(segment: Segment) -> None:
    segment.map[:4] = b"abcd"
    assert peek_segment(segment.name, 1, 2) == b"bc"
    assert peek_segment(segment.name, (1 << 20) - 3, 3) == b"\0\0\0"
    assert peek_segment(segment.name, (1 << 20) - 3, 4) == b""
    assert peek_segment(segment.name + "x", 0, 1) == b""


def test_a_segment_whose_creator_died_while_making_it(segment: Segment) -> None:
    """It has its name and not a byte. Neither call takes that for damage."""
    os.truncate(os.path.join(SHM_DIRECTORY, segment.name[1:]), 0)
    assert peek_segment(segment.name, 0, 8) == b""
    assert not poke_segment(segment.name, 0, b"1")


def test_a_segment_open_to_others_is_refused(segment: Segment) -> None:
    os.chmod(os.path.join(SHM_DIRECTORY, segment.name[1:]), 0o666)
    with pytest.raises(SegmentForeignError):
        poke_segment(segment.name, 0, b"1")
    with pytest.raises(SegmentForeignError):
        peek_segment(segment.name, 0, 1)
    assert segment.map[0:1] == b"\0"


def test_no_descriptors_is_an_error(segment: Segment) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(SegmentError):
            poke_segment(segment.name, 0, b"1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
