"""What rounding does is accepted; a mistake is not, however much the model amplifies rounding."""

import contextlib
import dataclasses
import functools
import time

import keras
import models
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed

import tfaccel
from tfaccel.autotune.comparison import faithfulness
from tfaccel.autotune.comparison.faithfulness import Yardsticks
from tfaccel.autotune.comparison.perturb import round_once, rounded_inputs
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.autotune.search import MOST_REPAIRS, layer_of
from tfaccel.autotune.training_trials import TrainingTrials
from tfaccel.compat.patching import instance_attribute, set_attribute
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.measure import numerics
from tfaccel.passes import FusedActivation, FusedNorm, FusedOptimizer, MixedPrecision
from tfaccel.steps.snapshot import Snapshot

layers = keras.layers
EXACT = (FusedNorm(), FusedActivation(), FusedOptimizer())
SIXTEEN = MixedPrecision("bfloat16")


def convolutional():
    """Batch normalizations at their first weights amplify rounding."""
    x = inputs = keras.Input((16, 16, 3))
    for filters in (8, 16, 32):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4)(x)), (16, 16, 3)


def attending():
    """Nothing amplifies; key biases have a gradient that is zero but for rounding."""
    x = inputs = keras.Input((7, 8))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(24, activation="gelu")(x)))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x))), (7, 8)


NETS = pytest.mark.parametrize("net", [convolutional, attending], ids=lambda net: net.__name__)


def workload_of(net):
    keras.utils.set_random_seed(0)
    model, shape = net()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, *shape)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, rng.integers(0, 4, 64))).batch(32)
    return Workload(model, tuple(data), data.element_spec)


@dataclasses.dataclass(frozen=True)
class Seen:
    """A net's untouched step, the same under plans, and the yardsticks."""

    reference: numerics.Observation
    exact: numerics.Observation
    sixteen: numerics.Observation
    near: dict
    moved: numerics.Observation
    other: numerics.Observation

    def verdict(self, candidate, dtype):
        moved = () if dtype == "float32" else (self.moved,)
        yardsticks = Yardsticks(dtype, (self.near[dtype], *moved), self.other)
        tolerance = numerics.TOLERANCES[dtype]
        return faithfulness.violation(self.reference, candidate, tolerance, yardsticks)


@pytest.fixture(scope="module")
def seen():
    @functools.cache
    def observed(net):
        workload = workload_of(net)
        probe = StepRecorder(workload, Snapshot.of(workload))
        reference = probe.observe(Plan())
        return Seen(
            reference,
            probe.observe(Plan(EXACT), reference),
            probe.observe(Plan((*EXACT, SIXTEEN)), reference),
            {"float32": probe.near(), "bfloat16": probe.near("bfloat16")},
            probe.near("bfloat16", moved=True),
            probe.other(),
        )

    return observed


@NETS
def test_rounding_is_accepted(net, seen):
    assert seen(net).verdict(seen(net).exact, "float32") is None
    assert seen(net).verdict(seen(net).sixteen, "bfloat16") is None


def test_a_net_of_batch_normalizations_needs_its_own_yardstick(seen):
    found = seen(convolutional)
    drift = numerics.compare(found.reference, found.sixteen)
    assert drift.violation(numerics.TOLERANCES["bfloat16"]) is not None


MISTAKES = {
    "scale": lambda g: 1.1 * g,
    "lost": np.zeros_like,
    "sign": lambda g: -g,
    "missing term": lambda g: g * (np.arange(len(g)) % 2 == 0).reshape(-1, *[1] * (g.ndim - 1)),
    "axis": lambda g: np.roll(g, 1, axis=-1),
}


@pytest.mark.parametrize("mistake", ["lost", "doubled thrice"])
def test_a_gross_mistake_shows_amid_16_bits_too(mistake, seen):
    """Even if the net's own sensitivity were as large as its gradients."""
    found = seen(convolutional)
    near, name = found.near["bfloat16"], "conv2d_1/kernel"
    kernel = next(n for n in near.gradients if n.endswith(name))
    right = found.reference.gradients[kernel]
    moved = np.random.default_rng(0).permutation(right.ravel()).reshape(right.shape)
    sensitive = dataclasses.replace(near, gradients={**near.gradients, kernel: moved})
    found = dataclasses.replace(found, near={"bfloat16": sensitive})
    for factor, accepted in ((1, True), (0 if mistake == "lost" else 8, False)):
        gradients = {**found.sixteen.gradients, kernel: factor * right}
        verdict = found.verdict(dataclasses.replace(found.sixteen, gradients=gradients), "bfloat16")
        assert (verdict is None) is accepted


@NETS
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_any_variable_s_gradient_is_refused(net, mistake, seen):
    found = seen(net)
    whole = np.sqrt(sum(np.linalg.norm(g) ** 2 for g in found.reference.gradients.values()))
    count = 0
    for name, gradient in found.exact.gradients.items():
        if np.linalg.norm(gradient) < 1e-5 * whole:
            continue  # zero by construction: rounding is all there is
        wrong = {**found.exact.gradients, name: MISTAKES[mistake](gradient)}
        violation = found.verdict(dataclasses.replace(found.exact, gradients=wrong), "float32")
        assert violation is not None and violation.where == name
        count += 1
    assert count > 9


def test_gradients_that_are_zero_by_construction_do_not_count(seen):
    found = seen(convolutional)
    (bias, *_) = (name for name in found.exact.gradients if name.endswith("conv2d/bias"))
    assert np.linalg.norm(found.reference.gradients[bias]) < 1e-4
    for dtype, candidate in (("float32", found.exact), ("bfloat16", found.sixteen)):
        other = {**candidate.gradients, bias: -found.reference.gradients[bias]}
        assert found.verdict(dataclasses.replace(candidate, gradients=other), dtype) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stale_statistic_is_refused(dtype, seen):
    found = seen(convolutional)
    candidate = found.exact if dtype == "float32" else found.sixteen
    for layer in {name.rpartition("/")[0] for name in candidate.state}:
        old = {k: v for k, v in found.reference.state_before.items() if k.startswith(layer + "/")}
        stale = dataclasses.replace(candidate, state={**candidate.state, **old})
        violation = found.verdict(stale, dtype)
        assert violation.kind == "state" and violation.where in old


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_loss_is_refused(dtype, seen):
    found = seen(convolutional)
    candidate = found.exact if dtype == "float32" else found.sixteen
    wrong = {name: 1.1 * value for name, value in candidate.losses.items()}
    assert found.verdict(dataclasses.replace(candidate, losses=wrong), dtype).kind == "loss"


def test_a_net_that_rounding_turns_around_is_no_steadier_in_its_loss(seen):
    """A single number may be left alone by a rounding, and moved by the next."""
    found = seen(convolutional)
    off = {name: 1.06 * value for name, value in found.sixteen.losses.items()}
    candidate = dataclasses.replace(found.sixteen, losses=off)
    assert found.verdict(candidate, "bfloat16").kind == "loss"
    rng = np.random.default_rng(0)
    turned = {
        name: rng.permutation(value.ravel()).reshape(value.shape)
        for name, value in found.reference.gradients.items()
    }
    near = dataclasses.replace(found.near["bfloat16"], gradients=turned)
    found = dataclasses.replace(found, near={"bfloat16": near})
    assert found.verdict(candidate, "bfloat16") is None
    off = {name: 1.2 * value for name, value in found.sixteen.losses.items()}
    candidate = dataclasses.replace(found.sixteen, losses=off)
    assert found.verdict(candidate, "bfloat16").kind == "loss"


def test_what_turns_non_finite_is_refused(seen):
    found = seen(attending)
    name = next(iter(found.exact.gradients))
    broken = {**found.exact.gradients, name: np.full_like(found.exact.gradients[name], np.nan)}
    candidate = dataclasses.replace(found.exact, gradients=broken)
    assert found.verdict(candidate, "float32").kind == "finite"
    # Where the untouched step gives NaN as well, the plan is not to blame.
    both = dataclasses.replace(found, reference=candidate)
    assert both.verdict(candidate, "float32") is None


@dataclasses.dataclass(frozen=True)
class Planted(tfaccel.Pass):
    """A pass with a mistake: the gradient of every kernel, or a statistic."""

    name = "planted"
    mistake: str = "scale"

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        optimizer, norms = context.workload.model.optimizer, layers.BatchNormalization
        apply = optimizer.apply

        def mistaken(grads, variables=None):
            factor = {"scale": 1.1, "lost": 0.0}.get(self.mistake, 1.0)
            return apply([factor * tf.convert_to_tensor(g) for g in grads], variables)

        with contextlib.ExitStack() as stack:
            stack.enter_context(instance_attribute(optimizer, "apply", mistaken))
            if self.mistake == "stale":
                for layer in (x for x in context.workload.layers if isinstance(x, norms)):
                    stack.enter_context(set_attribute(layer, "momentum", 1.0))
            yield


@pytest.fixture(scope="module")
def bench():
    workload = workload_of(convolutional)
    with TrainingTrials(workload, baseline=lambda iterator: {}, clock=time.perf_counter) as entered:
        yield entered


@crossed(
    ("beside", "mistake"),
    {"float32": (), "16 bits": (SIXTEEN,)},
    ["scale", "lost", "stale"],
)
def test_trials_refuse_a_pass_with_a_mistake(mistake, beside, bench):
    """Amid 16 bits, too, where the net makes more of rounding than the mistake is."""
    _, violation = bench.compared(Plan((Planted(mistake), *beside)))
    assert violation


def test_trials_accept_16_bits_and_exact_passes(bench):
    for plan in (Plan((SIXTEEN,)), Plan((*EXACT, SIXTEEN))):
        assert bench.compared(plan)[1] is None


def test_weights_that_16_bits_have_are_no_reason_to_refuse_16_bits():
    """Rounding them once changes nothing; what is computed by them is rounded all the same."""
    workload = workload_of(convolutional)
    round_once(workload.model.trainable_variables, "bfloat16")
    batches = tuple(rounded_inputs(batch, "bfloat16", None) for batch in workload.batches)
    workload = dataclasses.replace(workload, batches=batches)
    with TrainingTrials(workload, lambda iterator: {}, time.perf_counter) as bench:
        assert bench.compared(Plan((SIXTEEN,)))[1] is None
        assert bench.compared(Plan((Planted("scale"), SIXTEEN)))[1] is not None


def test_a_user_s_tolerance_is_not_widened():
    workload = workload_of(convolutional)
    with TrainingTrials(workload, lambda iterator: {}, time.perf_counter, tolerance=1e-3) as strict:
        assert strict.compared(Plan((SIXTEEN,)))[1] is not None


def test_the_layer_of_a_variable_can_be_spared():
    workload = workload_of(attending)
    variable = workload.model.layers[1].trainable_variables[0]
    name = layer_of(variable.path, workload)
    assert SIXTEEN.sparing(name).keep == (name,)
    spared = workload_of(attending)
    kept = [str(x.name) for x, why in SIXTEEN.sparing(name).layers(workload) if why]
    assert name in kept and name not in [str(x.name) for x, why in SIXTEEN.layers(workload) if why]
    assert layer_of("no such variable", spared) == ""


def accepted(bench, plan):
    """Whether a plan is faithful, if need be with layers left in float32, as the search does."""
    for _ in range(MOST_REPAIRS + 1):
        drift, violation = bench.compared(plan)
        if violation is None:
            return True
        layer = layer_of(drift.worst, bench.workload)
        plan = Plan(tuple(item.sparing(layer) or item for item in plan.passes))
    return False


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", models.MODELS, ids=lambda benchmark: benchmark.name)
def test_real_models_in_16_bits(benchmark):
    """What Keras's own mixed policy trains without loss is accepted; mistakes are not."""
    model = benchmark.model()
    model.optimizer.build(model.trainable_variables)
    data = benchmark.dataset()
    workload = Workload(model, tuple(data.take(2)), data.element_spec)
    plans = [Plan((SIXTEEN,)), Plan((*EXACT, SIXTEEN))]
    plans = [
        Plan(tuple(item for item in plan.passes if not item.unsupported(workload)))
        for plan in plans
    ]
    with TrainingTrials(workload, lambda iterator: {}, time.perf_counter) as bench:
        for plan in plans:
            assert accepted(bench, plan)
        for mistake in ("scale", "lost"):
            assert bench.compared(Plan((Planted(mistake), SIXTEEN)))[1] is not None
