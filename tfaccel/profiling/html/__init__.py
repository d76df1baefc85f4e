"""A run's records as one HTML page that needs nothing else: no network, no script, no font."""

from tfaccel.profiling.html.figures import Figure, key_figures
from tfaccel.profiling.html.outcome import facts
from tfaccel.profiling.html.page import html_page
from tfaccel.profiling.html.sentence import verdict

__all__ = ["Figure", "facts", "html_page", "key_figures", "verdict"]
