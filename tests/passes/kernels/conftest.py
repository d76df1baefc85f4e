"""Races of kernels whose outcome a test says."""

import pytest
from produced import ranked

from tfaccel.passes.kernels import _selection


@pytest.fixture
def measured(monkeypatch):
    """What was measured, in order; and who wins (by default nobody)."""
    asked = []

    def measure(spec, clock, deadline, likely, families, expected):
        assert likely is None
        asked.append(spec)
        if hasattr(clock, "advance"):
            clock.advance(1.0)
        return ranked(spec, measure.winner)

    measure.winner = "tensorflow"
    measure.asked = asked
    monkeypatch.setattr(_selection, "measure", measure)
    # Nothing was measured anywhere, so that every kernel is worth a look.
    monkeypatch.setattr(_selection, "shipped", tuple)
    # The steps of tests are so short that nothing would be too small, or all.
    monkeypatch.setattr(_selection, "LEAST_SHARE", 0.0)
    return measure
