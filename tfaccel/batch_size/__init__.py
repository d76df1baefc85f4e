"""max_batch_size: the largest batch that fits, by real steps."""

from tfaccel.batch_size.report import BatchSizeReport
from tfaccel.batch_size.search import SizeTrial
from tfaccel.batch_size.steps import max_batch_size

__all__ = ["BatchSizeReport", "SizeTrial", "max_batch_size"]
