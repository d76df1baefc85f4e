"""max_batch_size: the largest batch that fits, by real steps."""

from tfaccel.memory_search.report import BatchSizeReport
from tfaccel.memory_search.search import SizeTrial, Verdict
from tfaccel.memory_search.steps import max_batch_size

__all__ = ["BatchSizeReport", "SizeTrial", "Verdict", "max_batch_size"]
