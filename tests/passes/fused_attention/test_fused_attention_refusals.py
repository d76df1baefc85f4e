"""Which attention layers keep Keras's code, and what is left behind."""

import keras
import pytest
import tensorflow as tf
from attending import (
    CPU,
    LAYERS,
    QUERIES,
    WIDTH,
    Run,
    assert_same_as_keras,
    inputs_of,
    twins,
    workload_of,
)

from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes.attention.fused_attention import FusedAttention

pytestmark = pytest.mark.usefixtures("unoptimised")
MultiHeadAttention = keras.layers.MultiHeadAttention
GroupQueryAttention = keras.layers.GroupQueryAttention


class Doubled(MultiHeadAttention):
    def _compute_attention(self, *args, **kwargs):
        y, scores = super()._compute_attention(*args, **kwargs)
        return 2.0 * y, scores


class Mine(MultiHeadAttention):
    """A subclass that changes nothing."""


def test_a_subclass_that_changes_nothing_is_served(rng):
    assert_same_as_keras(lambda: Mine(3, 4), rng)


def keeps_its_own(layer, inputs, **kwargs):
    plain = Run(layer, inputs, **kwargs)
    return Run(layer, inputs, fused=FusedAttention(), **kwargs).ops() == plain.ops()


@pytest.mark.parametrize(
    ("make", "refusal", "named"),
    [
        (lambda: Doubled(3, 4), Refusal.OWN_CODE, "_compute_attention"),
        (lambda: MultiHeadAttention(3, 4, dtype="float64"), Refusal.DTYPE, "float64"),
        (
            lambda: MultiHeadAttention(3, 4, activity_regularizer="l2"),
            Refusal.CASE,
            "activity_regularizer",
        ),
        (
            lambda: MultiHeadAttention(3, 4, flash_attention=True),
            Refusal.SETTING,
            "flash_attention",
        ),
    ],
    ids=["subclass", "float64", "activity_regularizer", "flash_attention"],
)
def test_layers_that_keep_keras(make, refusal, named):
    layer = make()
    layer.build((None, QUERIES, WIDTH), (None, QUERIES, WIDTH))
    unsupported = FusedAttention().unsupported(workload_of(layer))
    assert unsupported.kind is refusal
    assert repr(layer.name) in unsupported.cause and named in unsupported.cause
    with FusedAttention().applied(StepContext(workload_of(layer))):
        assert "call" not in vars(layer)


def test_more_than_one_attention_axis_keeps_keras(rng):
    layer = MultiHeadAttention(2, 3, attention_axes=(1, 2))
    x = tf.cast(rng.normal(size=(2, 3, 4, 5)), tf.float32)
    layer.build(x.shape, x.shape)
    assert keeps_its_own(layer, [x])
    unsupported = FusedAttention().unsupported(workload_of(layer))
    assert unsupported.kind is Refusal.CASE and "(1, 2)" in unsupported.cause


def test_attention_scores_are_keras_own(rng):
    inputs = inputs_of(rng, (QUERIES,))
    (layer,) = twins(LAYERS["plain"], rng, [inputs[0].shape] * 2, copies=1)
    assert keeps_its_own(layer, inputs, return_attention_scores=True)


def test_a_model_without_attention_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    unsupported = FusedAttention().unsupported(Workload(model, device=CPU))
    assert unsupported.kind is Refusal.NOTHING


def test_nothing_is_left_behind(rng):
    inputs = inputs_of(rng, (QUERIES,))
    (layer,) = twins(LAYERS["plain"], rng, [inputs[0].shape] * 2, copies=1)
    before = dict(vars(layer))
    Run(layer, inputs, fused=FusedAttention())
    after = {k: v for k, v in vars(layer).items() if not k.startswith("_called")}
    assert after == {k: v for k, v in before.items() if not k.startswith("_called")}
    with (
        pytest.raises(RuntimeError, match="inside"),
        FusedAttention().applied(StepContext(workload_of(layer))),
    ):
        raise RuntimeError("inside")
    assert "call" not in vars(layer)
