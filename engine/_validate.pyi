"""Checks of a commit request; see _validate.pyx. Compiled code alone calls it: nothing to see from Python."""
