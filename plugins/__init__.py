"""Stores for agent frameworks, each a module of its own over the public API of occamdb.

A plug-in is imported by name and needs its extra: `pip install "occamdb[langgraph]"`, then
`from occamdb.plugins.langgraph import OccamSaver`. Importing occamdb imports none of them.
"""
