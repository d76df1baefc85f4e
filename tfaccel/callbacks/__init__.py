"""Keras callbacks: thin adapters between Keras's hooks and the engine."""

from tfaccel.callbacks.accelerate import AccelCallback
from tfaccel.callbacks.profiler import ProfilerCallback

__all__ = ["AccelCallback", "ProfilerCallback"]
