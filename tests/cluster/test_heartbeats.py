"""How long a worker may be silent."""

import pytest
from tensorflow.python.eager import context

from tfaccel.compat.tensorflow_private import heartbeats
from tfaccel.distribute import MultiWorker


def test_tensorflow_is_told_of_the_timeout_where_workers_are_joined(monkeypatch):
    told = []
    kind = type(context.context())
    monkeypatch.setattr(kind, "configure_coordination_service", lambda _, **how: told.append(how))
    with heartbeats(6.5):
        context.context().configure_coordination_service(service_type="standalone")
    context.context().configure_coordination_service(service_type="standalone")
    usual = {"service_type": "standalone"}
    assert told == [{**usual, "heartbeat_timeout_in_ms": 6500}, usual]


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_no_time_at_all_is_refused(seconds):
    with pytest.raises(ValueError, match="heartbeat_seconds must be positive"):
        MultiWorker(heartbeat_seconds=seconds)
