"""Passes for predictions alone."""
