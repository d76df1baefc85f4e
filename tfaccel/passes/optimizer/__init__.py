"""Optimizer updates in one op a variable."""
