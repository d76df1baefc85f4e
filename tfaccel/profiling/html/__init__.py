"""A run's records as one HTML page that needs nothing else: no network, no script, no font."""

from tfaccel.profiling.html.page import html_page

__all__ = ["html_page"]
