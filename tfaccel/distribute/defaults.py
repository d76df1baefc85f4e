"""Keras's global settings for new models, changed for the length of a `with` block."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat.collectives import xla_obstacle
from tfaccel.system.arguments import one_of
from tfaccel.system.device import Device

_SHORT_NAMES = {"bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def policy_name(mixed_precision: Any, device: Device) -> str | None:
    """The dtype policy that new models get; None for Keras's own, and for `mixed_precision=False`.

    `"auto"` is the dtype that the device multiplies fast, on a GPU. On a CPU a policy for the
    whole model made four of seven models slower that AccelCallback's passes make faster, so
    `"auto"` leaves a CPU's models to AccelCallback. A global policy that isn't plain float32 is
    taken for the user's wish, which `"auto"` leaves. ValueError for what is no policy.
    """
    if mixed_precision is False:
        return None
    if mixed_precision == "auto":
        fast = device.fast_dtype if device.kind == "GPU" else None
        chosen_by_user = keras.config.dtype_policy().name != "float32"
        return None if fast is None or chosen_by_user else _SHORT_NAMES[fast]
    check_dtype_policy(mixed_precision)
    return _SHORT_NAMES.get(mixed_precision, mixed_precision)


def check_dtype_policy(mixed_precision: Any) -> None:
    """Raises ValueError for what can't stand for a dtype policy."""
    if mixed_precision is False or mixed_precision == "auto":
        return
    try:
        if not isinstance(mixed_precision, str):
            raise ValueError("not a string")
        keras.dtype_policies.DTypePolicy(_SHORT_NAMES.get(mixed_precision, mixed_precision))
    except ValueError as error:
        raise ValueError(
            '`mixed_precision` must be "auto", False, "bfloat16", "float16" or the name of a '
            f"Keras dtype policy. Received: {mixed_precision!r}"
        ) from error


def check_jit_compile(jit_compile: Any) -> None:
    """Raises ValueError for what can't be Keras's `jit_compile`."""
    if not (jit_compile == "auto" or isinstance(jit_compile, bool)):
        raise ValueError(f'`jit_compile` must be "auto", True or False. Received: {jit_compile!r}')


def check_xla(jit_compile: Any, strategy: tf.distribute.Strategy, device: Device) -> None:
    """Says why XLA and several replicas (of all workers together) don't go together.

    Raises:
        ValueError: for XLA with several replicas on CPUs, where it always fails. On GPUs it is a
            warning.
    """
    num_replicas = strategy.num_replicas_in_sync
    if jit_compile is not True or num_replicas == 1:
        return
    reason = xla_obstacle(strategy)
    if device.kind == "CPU":
        raise ValueError(
            f"jit_compile=True does not work with {num_replicas} replicas on CPUs: {reason}. "
            'Use jit_compile="auto".'
        )
    warnings.warn(
        f"jit_compile=True with {num_replicas} replicas often fails: {reason}.", stacklevel=3
    )


def image_format(data_format: Any) -> str | None:
    """The image data format that new layers get; None, for `False`, is Keras's own.

    `"auto"` is channels-last: the only one that TensorFlow convolves on a CPU, and the faster one
    in 16 bits on a GPU. ValueError for what is no format.

    Source: https://docs.nvidia.com/deeplearning/performance/dl-performance-convolutional/
    """
    if data_format is False:
        return None
    one_of("data_format", data_format, ("auto", "channels_last", "channels_first", False))
    return "channels_last" if data_format == "auto" else data_format


@contextlib.contextmanager
def model_defaults(policy: str | None, data_format: str | None) -> Iterator[None]:
    """Sets what new models get, where it is not None; the settings are what they were on leaving.

    >>> from tfaccel.distribute.defaults import model_defaults
    >>> with model_defaults("mixed_bfloat16", None):
    ...     inside = keras.layers.Dense(1).dtype_policy.name
    >>> inside, keras.layers.Dense(1).dtype_policy.name
    ('mixed_bfloat16', 'float32')
    """
    policy_before, format_before = keras.config.dtype_policy(), keras.config.image_data_format()
    try:
        if policy is not None:
            keras.config.set_dtype_policy(policy)
        if data_format is not None:
            keras.config.set_image_data_format(data_format)
        yield
    finally:
        keras.config.set_dtype_policy(policy_before)
        keras.config.set_image_data_format(format_before)
