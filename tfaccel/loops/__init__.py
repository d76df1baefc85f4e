"""`accelerate_step` and `plan_applied`: training loops of the user's own."""

from tfaccel.loops.api import accelerate_step
from tfaccel.loops.plan_context import plan_applied

__all__ = ["accelerate_step", "plan_applied"]
