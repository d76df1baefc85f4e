"""Steps that may be repeated, though they move the clock in Python."""

import pytest

from tfaccel.training import choose


@pytest.fixture
def repeatable(monkeypatch):
    """Steps move the clock in Python, which may be repeated here."""
    monkeypatch.setattr(choose, "unrepeatable", lambda *args: "")
    monkeypatch.setattr(choose, "unrestorable", lambda *args: "")
