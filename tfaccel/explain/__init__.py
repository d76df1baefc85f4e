"""Layer by layer: which passes serve it, and why the others do not."""

from tfaccel.explain.api import Explanation, explain

__all__ = ["Explanation", "explain"]
