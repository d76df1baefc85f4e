"""Keras callbacks: thin adapters between Keras's hooks and the engine.

Each is imported from its own module: AccelCallback's users need not wait for the profiler.
"""
