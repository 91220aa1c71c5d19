"""Effects of a request on the store; see _apply.pyx. Compiled code alone calls it: nothing to see from Python."""
