"""Waking answered workers; see _wakes.pyx. Compiled code alone calls it: nothing to see from Python."""
