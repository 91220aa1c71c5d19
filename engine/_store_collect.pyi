"""Garbage collection of the store: which record versions, tombstones and nodes nobody can see any more.

Called by compiled code only; nothing to see from Python.
"""
