"""Which snapshots are open; see _pins.pyx. Compiled code alone calls it: nothing to see from Python."""
