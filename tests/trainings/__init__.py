"""Small programs of the kinds that people report trouble with: functions of a folder."""

from trainings import in_callbacks, options, own_steps, sequences
from trainings.common import TRAININGS

MODULES = (own_steps, sequences, options, in_callbacks)
__all__ = ["MODULES", "TRAININGS"]
