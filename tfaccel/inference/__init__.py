"""accelerate: the same idea for predict and export."""

from tfaccel.inference.accelerated_model import AcceleratedModel
from tfaccel.inference.accelerating import accelerate
from tfaccel.inference.saving.load import load

__all__ = ["AcceleratedModel", "accelerate", "load"]
