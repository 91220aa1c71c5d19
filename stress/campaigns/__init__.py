"""Fault campaigns: `crash` kills the coordinator again and again, `chaos` does everything that hurts."""
