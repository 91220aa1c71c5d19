"""Drivers that let tests call compiled parts directly. Built beside the sources, never part of a wheel."""
