"""ExactReductions on models whose own policy is bfloat16; test_sums_in_16_bits.py has the sums."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.autotune.priors import pass_names, reserve_names
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes import ExactReductions
from tfaccel.system.device import Device

layers = keras.layers
CPU = Device("CPU", "test")


def model_in(policy):
    model = keras.Sequential(
        [
            keras.Input((4096, 2)),
            layers.Dense(2, dtype=policy),
            layers.GlobalAveragePooling1D(dtype=policy),
            layers.Dense(1, dtype="float32"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


@pytest.mark.parametrize(
    ("policy", "device", "refusal"),
    [
        ("mixed_bfloat16", CPU, None),
        ("bfloat16", CPU, None),
        ("float32", CPU, Refusal.NOTHING),
        ("mixed_float16", CPU, Refusal.NOTHING),
        ("mixed_bfloat16", Device("GPU", "A100", compute_capability=(8, 0)), Refusal.NO_USE),
    ],
)
def test_what_is_refused(policy, device, refusal):
    unsupported = ExactReductions().unsupported(Workload(model_in(policy), device=device))
    assert getattr(unsupported, "kind", None) is refusal


def test_it_is_left_to_be_named():
    assert "exact_reductions" not in (*pass_names(None, ()), *reserve_names(None, ()))
    assert pass_names(["exact_reductions"], ()) == ("exact_reductions",)


def test_a_bias_is_trained_as_in_float32(rng):
    """By a fit of one step; without the pass half of the update is missing."""
    x = rng.normal(size=(4, 4096, 2)).astype("float32")
    y = np.full((4, 1), 5.0, "float32")
    plain, mixed, exact = (
        model_in("float32"),
        model_in("mixed_bfloat16"),
        model_in("mixed_bfloat16"),
    )
    start = plain.get_weights()
    mixed.set_weights(start)
    exact.set_weights(start)
    plain.fit(x, y, verbose=0)
    mixed.fit(x, y, verbose=0)
    exact.fit(x, y, verbose=0, callbacks=[tfaccel.AccelCallback(["exact_reductions"], verbose=0)])
    wanted = plain.layers[0].bias.numpy()
    size = np.linalg.norm(wanted)
    assert np.linalg.norm(mixed.layers[0].bias.numpy() - wanted) > 0.3 * size
    assert np.linalg.norm(exact.layers[0].bias.numpy() - wanted) < 0.02 * size
    assert tf.nn.bias_add.__module__.startswith("tensorflow")
