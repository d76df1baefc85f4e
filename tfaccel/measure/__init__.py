"""Clocks, paired timing, comparison of numbers, text tables."""
