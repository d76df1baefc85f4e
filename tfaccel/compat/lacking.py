"""What the installed Keras and TensorFlow lack of the private API that tfaccel uses.

Only what can be looked up on classes and in modules: nothing is made, and no device is started.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from tfaccel.compat import keras_private, tensorflow_private

EVERYTHING = "AccelCallback"
# What is looked up on which class, and what it serves.
_OF_KERAS: tuple[tuple[type, str, str], ...] = (
    (keras.Model, "_flatten_layers", EVERYTHING),
    (keras.layers.Layer, "_flatten_layers", EVERYTHING),
    (keras.optimizers.Optimizer, "_get_variable_index", "the pass fused_optimizer"),
    (keras.layers.RNN, "inner_loop", "the pass fused_rnn"),
    (keras.layers.LSTMCell, "get_dropout_mask", "the pass fused_rnn"),
)


def lacking() -> dict[str, str]:
    """What is not there, by its name, and what can't be done without it."""
    found = {
        f"Keras's {kind.__name__}.{name}": use
        for kind, name, use in _OF_KERAS
        if getattr(kind, name, None) is None
    }
    return found | {name: use for name, (look, use) in _OTHERS.items() if not _is_there(look)}


def _is_there(look: Callable[[], object]) -> bool:
    try:
        return look() is not None
    except (ImportError, keras_private.KerasChangedError):
        return False


# How each is looked for (None, or an error, where it is not there), and what it serves.
_OTHERS: dict[str, tuple[Callable[[], object], str]] = {
    "Keras's backend trainer": (
        lambda: keras_private.trainer_class(),
        "AcceleratedModel.predict",
    ),
    "TensorFlow's reader of profiles": (
        lambda: tensorflow_private.profiler_protobuf(),
        "a profile of operations",
    ),
    "TensorFlow's reader of XLA's programs": (
        lambda: tensorflow_private.xla_protobuf(),
        "a profile of operations that XLA compiled",
    ),
    "a tf.function's _clone": (
        lambda: getattr(tf.function(lambda: None), "_clone", None),
        "accelerate_step",
    ),
}
