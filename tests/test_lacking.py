"""What versions lack of the private API: `tfaccel doctor` says it before a training does."""

import dataclasses

import keras
import pytest

from tfaccel.cli.doctor._finding import Level
from tfaccel.cli.doctor._software import check_private_api
from tfaccel.cli.doctor._surroundings import Surroundings, TensorFlow
from tfaccel.compat import lacking, tensorflow_private
from tfaccel.compat.keras_private import KerasChangedError


def found():
    return list(check_private_api(dataclasses.replace(Surroundings(), tensorflow=TensorFlow())))


def test_the_installed_versions_have_all_that_a_training_needs():
    assert lacking.EVERYTHING not in lacking.lacking().values()


def test_what_is_not_there_is_said_with_what_it_serves(monkeypatch):
    before = len(found())
    monkeypatch.setattr(tensorflow_private, "xla_protobuf", lambda: None)
    monkeypatch.setattr(keras.Model, "_flatten_layers", None)
    notes = {one.found: one.level for one in found()}
    assert len(notes) == before + 2
    assert {*notes.values()} == {Level.PROBLEM, Level.NOTE}


@pytest.mark.parametrize("name", ["profiler_protobuf", "trainer_class"])
def test_what_can_t_be_looked_up_is_not_there(name, monkeypatch):
    def gone():
        raise ImportError if name == "profiler_protobuf" else KerasChangedError("it")

    before = len(found())
    owner = lacking.tensorflow_private if name == "profiler_protobuf" else lacking.keras_private
    monkeypatch.setattr(owner, name, gone)
    assert len(found()) == before + 1
