"""A run's records as one HTML page that needs nothing else: no network, no script, no font."""

from tfaccel.html_report.figures import Figure, key_figures
from tfaccel.html_report.outcome import facts
from tfaccel.html_report.page import html_page
from tfaccel.html_report.sentence import verdict

__all__ = ["Figure", "facts", "html_page", "key_figures", "verdict"]
