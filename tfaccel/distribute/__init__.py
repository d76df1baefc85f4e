"""Training on one device, several, or many machines."""

from tfaccel.distribute.accel_strategy import AccelStrategy
from tfaccel.distribute.multi_worker import MultiWorker
from tfaccel.distribute.replicas import Mirrored

__all__ = ["AccelStrategy", "Mirrored", "MultiWorker"]
