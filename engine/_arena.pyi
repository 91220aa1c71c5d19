"""Allocator of the store segment and the quarantine of unlinked blocks. Called by compiled code only; nothing to see from Python."""
