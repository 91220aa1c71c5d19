"""What an acknowledged commit survives, as the server is set up: nothing is claimed that it does not do.

asked       synchronous_commit    what it waits for
none        off                   nothing: a crash of the server may lose the newest commits
standard    on                    its own log on disk, if fsync is on
always      on                    that, and the standbys of synchronous_standby_names
"""

from __future__ import annotations

from dataclasses import dataclass

from ...model.errors import ServerSetupError
from .location import Location
from .pool import Connection

__all__ = ["Durability", "ask_durability"]


@dataclass(frozen=True)
class Durability:
    """What this server does.

    Attributes:
      usual: what commits wait for that do not ask for more: "none", "standard" or "always".
      most: what one that asks waits for.
      fsync: the server forces its log to disk.
      standbys: the value of synchronous_standby_names.
    """

    usual: str
    most: str
    fsync: bool
    standbys: str

    def sync(self, durable: bool) -> bytes:
        """What `commit_many` is to wait for. It refuses if the server no longer does what is told of it."""
        if self.told(durable) == "always":
            return b"always"
        return b"durable" if durable else b"off" if self.usual == "none" else b"on"

    def told(self, durable: bool) -> str:
        """What a commit waits for."""
        return self.most if durable else self.usual

    def check_durable(self, location: Location) -> None:
        """Refuse a commit that must survive a loss of power, if none does."""
        if not self.fsync:
            raise _refusal("a durable commit", "fsync is off on the server", "set fsync = on", location)


def ask_durability(connection: Connection, asked: str, location: Location) -> Durability:
    """What the server does for a durability.

    Raises:
      ServerSetupError: "always" was asked, and the server does not do it.
    """
    row = connection.execute(
        "select current_setting('fsync'), current_setting('synchronous_standby_names')"
    ).fetchone()
    assert row is not None
    fsync, standbys = row[0] == "on", str(row[1]).strip()
    most = "always" if fsync and standbys else "standard"
    if asked == "always":
        if not fsync:
            raise _refusal('durability="always"', "fsync is off on the server", "set fsync = on", location)
        if not standbys:
            raise _refusal(
                'durability="always"',
                "synchronous_standby_names is empty on the server",
                "set synchronous_standby_names, as 'ANY 1 (standby1, standby2)'; or open with durability=\"standard\"",
                location,
            )
    return Durability(most if asked == "always" else asked, most, fsync, standbys)


def _refusal(what: str, why: str, hint: str, location: Location) -> ServerSetupError:
    return ServerSetupError(
        f"{location.shown} cannot give {what}: {why}", hint=hint, details={"location": location.shown}
    )
