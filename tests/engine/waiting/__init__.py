"""Waiting: the change ring, feeds, watches, waits."""
