"""Accelerated predictions as a folder that runs with and without tfaccel."""
