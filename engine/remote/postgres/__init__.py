"""Databases on PostgreSQL: `open_backend`, `migrate` and `describe`."""

from __future__ import annotations

from .opening import describe, migrate, open_backend

__all__ = ["describe", "migrate", "open_backend"]
