"""Tests of the compiled shared store against plain models."""
