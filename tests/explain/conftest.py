"""oneDNN is on, and a model that every pass serves."""

import pytest

from tfaccel.core import layer_note


@pytest.fixture(autouse=True)
def _onednn(monkeypatch):
    monkeypatch.setattr(layer_note, "onednn_is_on", lambda: True)
