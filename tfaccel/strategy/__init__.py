"""Training on one device, several, or many machines."""

from tfaccel.strategy.accel_strategy import AccelStrategy
from tfaccel.strategy.multi_worker import MultiWorker
from tfaccel.strategy.replicas import Mirrored

__all__ = ["AccelStrategy", "Mirrored", "MultiWorker"]
