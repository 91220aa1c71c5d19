"""Fixtures of the engine's tests."""

from tests.support.databases import db, db_factory, run, shared_database

__all__ = ["db", "db_factory", "run", "shared_database"]
