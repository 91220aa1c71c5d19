"""Hash index of the store: extendible hashing, one writer, lock-free readers.

Called by compiled code only; nothing to see from Python.
"""
