"""Ordered index of the store: a skip list over key bytes, one writer, lock-free readers.

Called by compiled code only; nothing to see from Python.
"""
