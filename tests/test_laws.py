"""The laws of CONTRIBUTING: every pass, every kind of model and feed."""

import contextlib
import dataclasses
import functools
import json
import pathlib

import catalogue
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.autotune.trial import coarsest_dtype
from tfaccel.core.layer_note import Runs
from tfaccel.core.plan import Plan, make_pass
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.passes import (
    INFERENCE_PASSES,
    PASSES,
    FusedNorm,
    FusedOptimizer,
    FusedRNN,
    StepBatching,
)
from tfaccel.steps.snapshot import Snapshot, known_variables

ROOT = pathlib.Path(__file__).parent.parent


def rows(passes):
    chosen = [row for row in catalogue.PASS_ROWS if type(row.item) in passes]
    return pytest.mark.parametrize("row", chosen, ids=lambda row: row.item.name)


ROWS = rows([*PASSES, *INFERENCE_PASSES])
# Against an untouched training step. That predictions are the same is tested in
# tests/passes/test_inference_passes.py.
TRAINING_ROWS = rows(PASSES)


def fits_but(*slow):
    """The same, of which some are slow: for the law at hand they are as another one is."""
    marked = [
        pytest.param(fit, marks=pytest.mark.slow if fit.name in slow else ())
        for fit in catalogue.FITS
    ]
    return pytest.mark.parametrize("fit", marked, ids=lambda fit: fit.name)


# Their models are those of others, to a pass; only their feeds differ, and trials meet those.
FITS_OF_OTHER_MODELS = fits_but(
    "unknown_length",
    "infinite",
    "several_steps_an_execution",
    "several_inputs_and_outputs",
    "frozen_and_regularised",
)
# To trials they are fed as another one is; the dearest models to trace are accelerated below.
FITS_OF_OTHER_FEEDS = fits_but(
    "masked_text", "images_from_tf_data", "infinite", "frozen_and_regularised"
)
# The callback does nothing at all under that plan, whatever is fit.
FITS_BY_WAY_OF_KERAS = fits_but(
    "several_inputs_and_outputs",
    "masked_text",
    "images_from_tf_data",
    "frozen_and_regularised",
    "unknown_length",
    "infinite",
    "several_steps_an_execution",
    "subclassed_from_py_dataset",
)


def marks(workload):
    """Everything about the user's objects that a pass might leave a mark on."""
    objects = [*workload.layers, *workload.optimizers]
    seen = [(id(o), sorted(vars(o)), {k: id(v) for k, v in vars(o).items()}) for o in objects]
    read = [id(variable.value) for variable in workload.model.variables]
    policies = [layer.dtype_policy for layer in workload.layers]
    functions = [{k: id(v) for k, v in vars(module).items()} for module in (tf, tf.nn, tf.math)]
    return seen, read, policies, workload.model.jit_compile, keras.config.dtype_policy(), functions


@pytest.fixture(scope="module")
def built():
    """A row's workload, built once for all rows: the laws are that nothing stays on it."""
    return functools.cache(lambda row_workload: row_workload())


@ROWS
def test_leaving_a_pass_restores_everything(row, built):
    workload = built(row.workload)
    before = marks(workload)
    with row.item.applied(StepContext(workload)):
        assert (marks(workload) != before) == row.item.changes_step
    assert marks(workload) == before
    with pytest.raises(ZeroDivisionError), row.item.applied(StepContext(workload)):
        raise ZeroDivisionError
    assert marks(workload) == before


@ROWS
def test_refusing_changes_nothing(row, built):
    workload = built(row.workload)
    before = marks(workload), [v.numpy().tobytes() for v in known_variables(workload)]
    assert row.item.unsupported(workload) is None
    after = marks(workload), [v.numpy().tobytes() for v in known_variables(workload)]
    assert after == before


@ROWS
def test_a_pass_tells_its_facts_and_changes_nothing(row, built):
    """What is expected of the pass, what decides whether it serves, and what it makes of layers."""
    workload = built(row.workload)
    before = marks(workload)
    assert type(row.item).suited(workload).name == row.item.name
    prior = row.item.prior(workload)
    assert prior.reason and isinstance(prior.pays, bool)
    json.dumps(row.item.cache_key(workload))
    for layer, reason in row.item.layers(workload):
        if reason is None:
            note = row.item.describe(layer, Runs("an op", "", "float32", ""), workload)
            assert str(note.runs)
    assert marks(workload) == before


@ROWS
def test_a_pass_survives_json(row):
    config = json.loads(json.dumps(row.item.to_config()))
    assert make_pass(row.item.name, config) == row.item


@pytest.fixture(scope="module")
def untouched(built):
    """A row's probe, and what it saw of the untouched step."""

    def observed(row_workload):
        workload = built(row_workload)
        probe = StepRecorder(workload, Snapshot.of(workload))
        return probe, probe.observe(Plan())

    return functools.cache(observed)


@TRAINING_ROWS
def test_a_pass_is_faithful(row, built, untouched):
    """Loss, gradients, update and statistics against the untouched step."""
    workload = built(row.workload)
    probe, reference = untouched(row.workload)
    drift = tfaccel.measure.numerics.compare(reference, probe.observe(Plan((row.item,)), reference))
    dtype = coarsest_dtype(Plan((row.item,)), workload)
    assert drift.violation(tfaccel.measure.numerics.TOLERANCES[dtype]) is None


def derivatives(workload, item, orders):
    """As many orders of derivatives under a pass, or of the layers as they are.

    By inputs and weights; the third by inputs alone, as it is much to trace.
    """
    model, x = workload.model, workload.batches[0][0]
    weights = [variable.value for variable in model.trainable_variables]

    @tf.function(autograph=False)
    def run(x):
        def sum_of_sines(tensors):
            return tf.add_n([tf.reduce_sum(tf.sin(tensor)) for tensor in tensors])

        tape = tf.GradientTape() if orders > 2 else contextlib.nullcontext()
        with tape as third, tf.GradientTape() as second:
            for watching in filter(None, (third, second)):
                watching.watch(x)
            with tf.GradientTape() as first:
                first.watch(x)
                total = sum_of_sines([model(x, training=True)])
            one = first.gradient(total, [x, *weights])
            total = sum_of_sines(one)
            two = second.gradient(total, [x, *weights], unconnected_gradients="zero")
            total = sum_of_sines(two[:1]) if third else None
        return (one, two, [third.gradient(total, x)]) if third else (one, two)

    state = Snapshot.of(workload)
    with item.applied(StepContext(workload)) if item else contextlib.nullcontext():
        function = run.get_concrete_function(tf.TensorSpec((None, *x.shape[1:])))
    found = [np.concatenate([np.ravel(t) for t in order]) for order in function(x)]
    state.restore()
    return found


# Neither has anything to do with layers.
NOT_OF_LAYERS = (FusedOptimizer, StepBatching)


def derived():
    """Each pass by order. The third takes several times as long to trace as the others."""
    for row in catalogue.PASS_ROWS:
        if type(row.item) in PASSES:
            marks = pytest.mark.slow if isinstance(row.item, NOT_OF_LAYERS) else ()
            yield pytest.param(row, 2, marks=marks, id=f"2-{row.item.name}")
            yield pytest.param(row, 3, marks=pytest.mark.slow, id=f"3-{row.item.name}")


@pytest.fixture(scope="module")
def plain_derivatives(built):
    return functools.cache(
        lambda row_workload, orders: derivatives(built(row_workload), None, orders)
    )


@pytest.mark.parametrize(("row", "orders"), derived())
@pytest.mark.usefixtures("unoptimised")
def test_derivatives_of_every_order_are_those_of_the_layers(row, orders, built, plain_derivatives):
    """What gradient penalties, differential equations and the like are trained by."""
    workload = built(row.smooth)
    assert row.item.unsupported(workload) is None
    bounds = (1e-4, 1e-4, 1e-3)[:orders]
    if coarsest_dtype(Plan((row.item,)), workload) == "bfloat16":
        bounds = (0.02, 0.1, 0.3)[:orders]
    found, expected = derivatives(workload, row.item, orders), plain_derivatives(row.smooth, orders)
    for bound, order, plain in zip(bounds, found, expected, strict=True):
        assert np.linalg.norm(order - plain) <= bound * np.linalg.norm(plain)


def compiled_for_its_size(workload, item):
    """Whether XLA compiles anything of a forward and backward pass whose batch is not known."""
    model, x = workload.model, workload.batches[0][0]

    @tf.function(autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(model(x, training=True))
        return tape.gradient(total, [v.value for v in model.trainable_variables])

    with item.applied(StepContext(workload)):
        graph = run.get_concrete_function(tf.TensorSpec((None, *x.shape[1:]))).graph
        calls = [op for op in graph.get_operations() if op.type.endswith("PartitionedCall")]
        # An attribute that is absent reads as false.
        marked = any(op.node_def.attr["_XlaMustCompile"].b for op in calls)
        return bool(model.jit_compile) or marked


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            marks=pytest.mark.slow if isinstance(row.item, NOT_OF_LAYERS) else (),
            id=row.item.name,
        )
        for row in catalogue.PASS_ROWS
        if type(row.item) in PASSES
    ],
)
def test_a_pass_says_what_it_compiles_for_each_size(row, built):
    """And compiles nothing, or refuses, where sizes are many."""
    workload = built(row.smooth)
    compiled = compiled_for_its_size(workload, row.item)
    assert row.item.compiles_sizes(workload) or not compiled
    assert compiled == (row.item.name in ("fused_norm", "fused_activation", "fused_rnn", "xla")), (
        "what compiles is tested here; kernels do if one that XLA compiles won a race"
    )
    if compiled:  # what is not compiled for one size is not for many
        varied = dataclasses.replace(workload, sizes_vary=True)
        assert row.item.unsupported(varied) or not compiled_for_its_size(varied, row.item)


def test_every_pass_has_a_row_and_a_page():
    kinds = [type(row.item) for row in catalogue.PASS_ROWS]
    assert kinds == [*PASSES, *INFERENCE_PASSES]
    assert not set(PASSES) & set(INFERENCE_PASSES)
    text = (ROOT / "docs" / "passes" / "index.md").read_text(encoding="utf-8")
    for item in kinds:
        assert f"[`{item.name}`]({item.name}.md)" in text
        assert (ROOT / "docs" / "passes" / f"{item.name}.md").is_file()


def assert_identical(left, right):
    assert len(left[0]) == len(right[0])
    for a, b in zip(left[0], right[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert left[1] == right[1]


@FITS_BY_WAY_OF_KERAS
def test_the_baseline_plan_is_no_callback(fit):
    assert_identical(
        catalogue.stock_results(fit), catalogue.results(fit, tfaccel.AccelCallback("baseline"))
    )


@dataclasses.dataclass(frozen=True)
class Nothing(tfaccel.Pass):
    """Serves everything and changes nothing, so that whatever differs is the engine's doing."""

    name = "nothing"

    def unsupported(self, workload):
        return None

    def applied(self, context):
        return tf.name_scope("")


@FITS_OF_OTHER_FEEDS
def test_trials_leave_no_trace(fit):
    """Real trials, with their steps and probes, and then training as if they had not been."""
    accel = tfaccel.AccelCallback(
        includes=["nothing"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
    )
    assert_identical(catalogue.stock_results(fit), catalogue.results(fit, accel))
    assert len(accel.report.trials) == 2, accel.report.to_markdown()
    assert accel.report.trials[1].outcome.value in ("slower", "faster", "stopped")


@FITS_OF_OTHER_MODELS
def test_an_accelerated_training_is_the_same_training(fit):
    """All float32 passes that serve the model: the same losses to rounding."""
    model, _ = fit.make()
    serving = [
        item
        for item in (FusedNorm(), FusedOptimizer(), FusedRNN())
        if not item.unsupported(Workload(model))
    ]
    stock = catalogue.stock_results(fit)
    fast = catalogue.results(fit, tfaccel.AccelCallback(serving))
    for a, b in zip(stock[1], fast[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)
