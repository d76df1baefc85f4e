"""accelerate: the same idea for predict and export."""

from tfaccel.inference.accelerated_model import AcceleratedModel
from tfaccel.inference.accelerating import accelerate

__all__ = ["AcceleratedModel", "accelerate"]
