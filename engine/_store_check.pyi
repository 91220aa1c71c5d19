"""Audit of every invariant of the store, for tests, stress runs and `occamdb check`.

Called by compiled code only; nothing to see from Python.
"""
