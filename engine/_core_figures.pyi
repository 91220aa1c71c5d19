"""Figures of the commit core; see _core_figures.pyx. Compiled code alone calls it: nothing to see from Python."""
