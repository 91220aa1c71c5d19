"""Copying into a mapped file; see _guarded_copy.pyx. Compiled code alone calls it: nothing to see from Python."""
