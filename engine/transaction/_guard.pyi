"""Which runs a commit may write to; see _guard.pyx. Nothing in it is called from Python."""
