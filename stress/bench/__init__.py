"""Benchmarks of occamdb beside its peers; `occamdb bench` is the way in (see command.py)."""
