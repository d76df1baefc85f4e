"""Fixtures that several of these files use."""

import pytest
from planes import Plane
from recorded import RECORDS, run, saved
from tensorflow.tsl.profiler.protobuf import xplane_pb2


@pytest.fixture
def space():
    return xplane_pb2.XSpace()


@pytest.fixture
def host(space):
    return Plane(space, "/host:CPU")


@pytest.fixture
def page(tmp_path):
    """Makes the page of some records, and its text."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")

    def make(items=RECORDS):
        return run(str(saved(tmp_path, items))).page.read_text(encoding="utf-8")

    return make
