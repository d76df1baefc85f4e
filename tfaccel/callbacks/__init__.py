"""Keras callbacks: thin adapters between Keras's hooks and the engine."""

from tfaccel.callbacks.accelerate import AccelCallback

__all__ = ["AccelCallback"]
