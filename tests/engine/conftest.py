"""Fixtures of the engine's tests."""

from tests.support.databases import db, db_factory, engine

__all__ = ["db", "db_factory", "engine"]
