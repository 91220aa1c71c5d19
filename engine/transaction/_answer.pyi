"""Both ends of `EngineHandle.submit`; see _answer.pyx."""

from typing import final

from ..commit.messages import Reply

@final
class Answer:
    """The outcome of one commit request, and the name under which the engine knows it."""

    def __init__(self, session: int, sequence: int, reply: bytes | Reply, durability: str) -> None: ...
    @property
    def session(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def reply(self) -> bytes | Reply: ...
    @property
    def durability(self) -> str: ...

def seal(request: bytearray, sequence: int, sync: bool) -> bool:
    """Write the sequence into an encoded request; with `sync`, ask for its commit to be synced to disk."""

def sequence_of(request: bytearray) -> int:
    """The sequence in a request that the commit core has sealed."""
