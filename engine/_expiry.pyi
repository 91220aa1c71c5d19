"""When keys expire; see _expiry.pyx. Compiled code alone calls it: nothing to see from Python."""
