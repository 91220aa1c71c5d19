"""Databases on PostgreSQL: `open_backend`, `migrate`, `migration_script` and `describe`."""

from __future__ import annotations

from .opening import describe, migrate, migration_script, open_backend

__all__ = ["describe", "migrate", "migration_script", "open_backend"]
