"""Counting a step's floating-point operations."""
