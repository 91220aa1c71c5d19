"""The commit core's channel table; see _core_channels.pyx. Compiled code alone calls it: nothing to see from Python."""
