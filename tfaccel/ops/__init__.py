"""Convolutions, matrix products and attention by measured kernels: the public ops."""

from tfaccel.ops.api import *  # noqa: F403
from tfaccel.ops.api import __all__ as __all__
