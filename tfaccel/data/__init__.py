"""tfaccel.data: input pipelines that keep up, and data that does not poison a model."""

from tfaccel.data.checking import check
from tfaccel.data.findings import Fault, FaultKind, Findings
from tfaccel.data.prepared import Account, Prepared
from tfaccel.data.preparing import prepare
from tfaccel.data.rules import Rules

__all__ = ["Account", "Fault", "FaultKind", "Findings", "Prepared", "Rules", "check", "prepare"]
