"""Allocator of the store segment. Called by compiled code only; nothing to see from Python."""
