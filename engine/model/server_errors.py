"""Errors of whatever answers for a database, a coordinator or a server; part of `errors.py`, which says what holds
for all.
"""

from __future__ import annotations

from ...ipc.errors import OccamError

__all__ = ["CoordinatorUnavailable", "ServerSetupError", "ServerUnavailable", "UnsupportedError"]


class CoordinatorUnavailable(OccamError):
    """No coordinator answers for this directory, and none could be started in time; nothing was committed."""

    code = "occam.coordinator.unavailable"
    retryable = True


class ServerUnavailable(CoordinatorUnavailable):
    """No server of this database could be reached in time, or it refused for now; nothing was committed."""

    code = "occam.coordinator.unavailable.server"


class ServerSetupError(OccamError):
    """The server cannot hold this database as it is set up: its version, role, schema, or a setting.

    Nothing was written. The hint names what to change, and where.
    """

    code = "occam.server.setup"


class UnsupportedError(OccamError):
    """This engine cannot do that. The hint says what to do instead."""

    code = "occam.unsupported"
