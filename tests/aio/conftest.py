"""Every test here runs in asyncio's own event loop and in uvloop."""

import pytest

from tests.support.aio import LOOPS, LoopFactory


@pytest.fixture(params=LOOPS)
def factory(request: pytest.FixtureRequest) -> LoopFactory:
    """Makes the loop that the test runs in."""
    return LOOPS[request.param]
