"""AcceleratedModel: checks, export, sizes, weights that change."""

import contextlib
import dataclasses
import math
import subprocess
import sys

import inference_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from inference_models import CASES, COUNT, accelerate, assert_alike, image_model, numbers

import tfaccel
from tfaccel.autotune.report import Report
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.inference import AcceleratedModel
from tfaccel.inference.predict_function import PredictFunction, own_function
from tfaccel.passes import XLA, FoldedNorm, FrozenWeights, FusedActivation

layers = keras.layers
winning = inference_models.winning
FROZEN = ["frozen_weights"]
pytestmark = pytest.mark.usefixtures("winning")


def dense_model():
    return keras.Sequential([keras.Input((4,)), layers.Dense(2)])


# Looking for NaN and Inf.


class Root(keras.Model):
    """NaN for negative sums."""

    def __init__(self):
        super().__init__()
        self.core = layers.Dense(1, use_bias=False, kernel_initializer="ones")

    def call(self, inputs):
        return {"root": keras.ops.sqrt(self.core(inputs)), "same": inputs}


@pytest.mark.parametrize("as_dataset", [False, True])
def test_what_is_not_finite_is_told_with_its_place(as_dataset):
    x = np.ones((11, 3), "float32")
    x[4, 1], x[7], x[9, 2] = np.nan, -1.0, np.inf
    fast = accelerate(Root(), np.ones((4, 3), "float32"), FROZEN)
    feed = {"x": tf.data.Dataset.from_tensor_slices(x).batch(4)} if as_dataset else {"x": x}
    feed |= {} if as_dataset else {"batch_size": 4}
    with pytest.warns(RuntimeWarning, match="first: sample 4, batch 1, x: NaN at .1"):
        found = fast.predict(**feed, verbose=0, validate=True)
    assert len(found["root"]) == 11  # nothing is left out
    rows = [(where, kind) for where, kind, _ in fast.findings.rows()]
    assert ("sample 4, batch 1, x", "nan") in rows
    assert ("sample 9, batch 2, x", "inf") in rows
    assert ("sample 7, prediction['root']", "nan") in rows
    assert fast.findings.indices == (4, 7, 9)
    assert fast.findings.samples == 11
    fast.predict(x[:3], verbose=0, validate=True)
    assert fast.findings.ok


def test_nothing_is_said_where_nobody_asked(recwarn):
    fast = accelerate(dense_model(), numbers(4), FROZEN)
    fast.predict(np.full((3, 4), np.nan, "float32"), verbose=0)
    assert fast.findings is None and not [w for w in recwarn if w.category is RuntimeWarning]


@dataclasses.dataclass(frozen=True)
class Overflowing(tfaccel.Pass):
    """NaN for inputs above 100, as where 16 bits overflow."""

    name = "overflowing"

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        layer = context.workload.model.layers[-1]
        own = layer.call

        def call(x, training=None):
            return own(tf.where(x > 100, math.nan, x))

        vars(layer)["call"] = call
        try:
            yield
        finally:
            del vars(layer)["call"]


def test_what_only_the_plan_makes_nan_is_predicted_by_the_model():
    model = dense_model()
    fast = accelerate(model, numbers(4), [Overflowing()])
    x = numbers(4)
    x[5] = 1000.0
    assert np.isnan(fast.predict(x, batch_size=4, verbose=0)).any()
    with pytest.warns(RuntimeWarning, match="predictions for 4 samples had NaN or Inf"):
        found = fast.predict(x, batch_size=4, verbose=0, validate=True)
    assert_alike(model.predict(x, batch_size=4, verbose=0), found)
    assert fast.findings.ok


def test_several_steps_an_execution_are_looked_at():
    model, x = inference_models.several_steps_an_execution()
    fast = accelerate(model, x, FROZEN)
    x[10, 0] = np.nan
    with pytest.warns(RuntimeWarning):
        found = fast.predict(x, batch_size=2, verbose=0, validate=True)
    assert fast.findings.indices == (10,) and np.isnan(found[10]).all()


# Weights that change.


def test_frozen_weights_are_those_of_the_call():
    model, x = dense_model(), numbers(4)
    fast = accelerate(model, x, FROZEN)
    before = model.predict(x, verbose=0)
    model.layers[0].kernel.assign_add(tf.ones((4, 2)))
    assert_alike(before, fast.predict(x, verbose=0))
    # Another size is traced now, with the weights of then.
    assert_alike(before[:3], fast.predict(x[:3], verbose=0))
    fast.refresh()
    assert_alike(model.predict(x, verbose=0), fast.predict(x, verbose=0))
    assert fast.plan.names == ("frozen_weights",)


def test_folded_weights_alone_follow_the_model():
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, ["folded_norm"])
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(layer.moving_variance * 3)
    assert_alike(model.predict(x, verbose=0), fast.predict(x, verbose=0))


def test_a_trained_model_is_predicted_with_after_refresh():
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, ["folded_norm", "frozen_weights"])
    model.compile("sgd", "mse")
    model.fit(x, numbers(3), verbose=0)
    fast.refresh()
    assert_alike(model.predict(x, verbose=0), fast.predict(x, verbose=0))


# Sizes.


def predict_function(model, *items):
    return PredictFunction(Workload(model, training=False), Plan(items))


def test_a_plan_by_xla_leaves_rare_sizes_to_the_model():
    model, calls = dense_model(), []
    function = predict_function(model, XLA())
    function([numbers(4)])
    assert function.compiles_sizes
    own = own_function(model)
    fast = AcceleratedModel(
        model,
        numbers(4),
        Report((), function.plan),
        lambda data: calls.append(len(data[0])) or own(data),
        function,
    )
    fast.predict(numbers(4), verbose=0)
    assert calls == []
    found = fast.predict(numbers(4), batch_size=5, verbose=0)
    assert calls == [5, 5, 2]
    assert_alike(model.predict(numbers(4), verbose=0), found)
    fast.predict(numbers(4), batch_size=5, verbose=0)
    assert calls == [5, 5, 2, 2]  # the third of its size is worth compiling for


def test_any_size_at_once_where_xla_compiles_nothing():
    function = predict_function(dense_model(), FrozenWeights())
    fast = AcceleratedModel(dense_model(), numbers(4), Report((), function.plan), None, function)
    for count in (1, 5, 40):
        assert fast(np.ones((count, 4), "float32")).shape == (count, 2)


def test_loops_are_seen_to_be_compiled():
    model = image_model()
    for item, compiles in ((FusedActivation(), True), (FoldedNorm(), False)):
        function = predict_function(model, item)
        function([numbers(8, 8, 3)])
        assert function.compiles_sizes == compiles


# Export.

# A signature has no outputs within outputs.
EXPORTED = [
    case
    for case in CASES
    if case.name not in ("stateful", "random", "own_step", "several_inputs_and_outputs")
]


BOTH = ["folded_norm", "frozen_weights"]
# A graph of another kind, or with variables or tables beside it. In a graph the rest is like one
# of these; that it is predicted right is tested for all.
QUICK = ("images", "subclassed_not_built", "masked_tokens", "words", "mixed_policy")
# Variables and tables beside the graph, in it, and both.
EXPORTS = [
    pytest.param(case, BOTH, marks=() if case.name in QUICK else pytest.mark.slow)
    for case in EXPORTED
] + [
    pytest.param(case, plan, marks=() if case.name == "images" else pytest.mark.slow)
    for case in EXPORTED
    if case.name in ("images", "words")
    for plan in ("baseline", ["folded_norm"])
]


@pytest.mark.parametrize(("case", "plan"), EXPORTS, ids=lambda one: getattr(one, "name", str(one)))
def test_what_is_exported_predicts_the_same(case, plan, tmp_path):
    model, x = case.make()
    fast = accelerate(model, x, plan)
    fast.export(tmp_path / "saved")
    served = tf.saved_model.load(str(tmp_path / "saved"))
    some = tf.nest.map_structure(lambda leaf: tf.convert_to_tensor(leaf)[: COUNT - 5], x)
    expected = model.predict(some, verbose=0)
    tolerance = 2e-2 if case.name == "mixed_policy" else 1e-5
    assert_alike(expected, served.serve(some), tolerance, tolerance)
    if "frozen_weights" in fast.plan.names:
        assert not served.variables


def test_a_dict_of_inputs_is_exported(tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    model = keras.Model({"a": a, "b": b}, layers.Dense(2)(layers.Concatenate()([a, b])))
    x = {"a": numbers(4), "b": numbers(3)}
    accelerate(model, x, FROZEN).export(tmp_path / "saved")
    served = tf.saved_model.load(str(tmp_path / "saved"))
    some = {name: tf.constant(value[:5]) for name, value in x.items()}
    assert_alike(model.predict(some, verbose=0), served.serve(some))


def test_an_exported_model_is_a_layer(tmp_path):
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, ["fused_norm", "fused_activation", "frozen_weights"])
    fast.export(str(tmp_path / "saved"))
    layer = keras.layers.TFSMLayer(str(tmp_path / "saved"), call_endpoint="serve")
    assert_alike(model.predict(x[:7], verbose=0), layer(x[:7]))


def test_open_sizes_stay_open(tmp_path):
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, layers.Conv1D(2, 3)(inputs))
    fast = accelerate(model, numbers(9, 3), FROZEN)
    fast.export(tmp_path / "saved")
    served = tf.saved_model.load(str(tmp_path / "saved"))
    assert_alike(model.predict(numbers(17, 3), verbose=0), served.serve(numbers(17, 3)))


def test_what_is_exported_has_the_weights_of_the_predictions(tmp_path):
    model, x = dense_model(), numbers(4)
    fast = accelerate(model, x, FROZEN)
    model.layers[0].kernel.assign_add(tf.ones((4, 2)))
    fast.export(tmp_path / "saved")
    served = tf.saved_model.load(str(tmp_path / "saved"))
    assert_alike(fast.predict(x, verbose=0), served.serve(tf.constant(x)))


@pytest.mark.slow
def test_another_process_serves_it_without_tfaccel(tmp_path):
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, ["kernels", "folded_norm", "frozen_weights"])
    fast.export(tmp_path / "saved")
    np.save(tmp_path / "x.npy", x[:5])
    program = (
        "import sys, numpy as np, tensorflow as tf\n"
        "served = tf.saved_model.load('saved').serve(tf.constant(np.load('x.npy')))\n"
        "assert 'tfaccel' not in sys.modules\n"
        "np.save('y.npy', served.numpy())\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert_alike(model.predict(x[:5], verbose=0), np.load(tmp_path / "y.npy"))
