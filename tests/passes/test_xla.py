import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes import XLA
from tfaccel.system.device import Device

layers = keras.layers
CPU = Device("CPU", "EPYC")
GPU = Device("GPU", "H100", compute_capability=(9, 0))


def model_of(*body, jit_compile=False):
    model = keras.Sequential([keras.Input((4,)), *body, layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    return model


class Lookup(layers.Layer):
    """Stands for StringLookup and its like."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_jit = False

    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("jit_compile", "device", "item", "refusal"),
    [
        (False, CPU, XLA(), None),
        (True, CPU, XLA(), Refusal.NO_USE),
        (True, CPU, XLA(False), Refusal.SETTING),
        (False, CPU, XLA(False), Refusal.NO_USE),
        (True, GPU, XLA(False), None),
        (False, GPU, XLA(), Refusal.SETTING),
    ],
)
def test_what_the_user_set_is_respected(jit_compile, device, item, refusal):
    workload = Workload(model_of(layers.Dense(2), jit_compile=jit_compile), device=device)
    unsupported = item.unsupported(workload)
    assert getattr(unsupported, "kind", None) is refusal


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_layer_in_the_way_is_named(device):
    workload = Workload(model_of(Lookup(name="vocabulary")), device=device)
    unsupported = XLA().unsupported(workload)
    assert unsupported.kind is Refusal.CASE and "'vocabulary' (Lookup)" in unsupported.cause


def test_the_step_is_compiled_by_xla_and_the_setting_stays(rng):
    import tfaccel

    seen = []

    class Watched(layers.Layer):
        def call(self, inputs):
            seen.append(tf.compat.v1.get_default_graph().outer_graph)
            return inputs

    model = model_of(Watched())
    x = rng.normal(size=(32, 4)).astype("float32")
    plan = tfaccel.Plan((XLA(),))
    model.fit(x, x[:, :1], verbose=0, callbacks=[tfaccel.AccelCallback(plan, verbose=0)])
    assert model.jit_compile is False
    compiled = [
        definition
        for graph in seen
        if graph is not None
        for definition in graph.as_graph_def().library.function
        if definition.attr["_XlaMustCompile"].b
    ]
    assert compiled or any(_must_compile(graph) for graph in seen)


def _must_compile(graph):
    return graph is not None and any(
        op.get_attr("_XlaMustCompile")
        for op in graph.get_operations()
        if "_XlaMustCompile" in op.node_def.attr
    )


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        (tf.TensorSpec((None, 4)), False),
        ((tf.TensorSpec((8, 4)), tf.TensorSpec((None,))), False),
        ({"x": tf.TensorSpec((None, None, 4))}, True),
        (tf.TensorSpec(None), True),
        (tf.RaggedTensorSpec((None, None)), True),
    ],
)
def test_batches_of_many_shapes_are_refused(spec, refused):
    workload = Workload(model_of(layers.Dense(2)), element_spec=spec, device=CPU)
    unsupported = XLA().unsupported(workload)
    assert getattr(unsupported, "kind", None) is (Refusal.SIZES if refused else None)


def test_it_is_a_frozen_record():
    assert dataclasses.replace(XLA(), jit_compile=False) == XLA(False)
    assert np.isclose(XLA.compile_factor, 4.0)
