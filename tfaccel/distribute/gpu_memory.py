"""How much GPU memory TensorFlow takes, set before it takes any."""

from typing import Any

import tensorflow as tf

_MIB = 2**20


def check_memory(growth: Any, limit_bytes: Any) -> None:
    """Raises TypeError or ValueError for what can't be `set_up_gpus`' arguments."""
    if not isinstance(growth, bool):
        raise TypeError(f"`memory_growth` must be True or False. Received: {growth!r}")
    if limit_bytes is None:
        return
    if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int):
        raise TypeError(f"`memory_limit_bytes` must be an int or None. Received: {limit_bytes!r}")
    if limit_bytes < _MIB:
        raise ValueError(
            f"`memory_limit_bytes` must be at least {_MIB} (1 MiB): it is a number of bytes "
            f"of each GPU. Received: {limit_bytes!r}"
        )


def set_up_gpus(growth: bool = True, limit_bytes: int | None = None, config: Any = None) -> None:
    """Says how much memory TensorFlow may take of each visible GPU.

    A limit sets aside that much at once, and TensorFlow has no growth beside it, so
    with a limit `growth` has no effect.

    Args:
        growth: take memory as it is needed, and not all of it at the start. False
            leaves the GPUs as they are.
        limit_bytes: take no more than this of each GPU, in whole MiB; None for no limit.
        config: stands in for `tf.config` in a test; None for `tf.config` itself.

    Raises:
        RuntimeError: if TensorFlow has used the GPUs already, in another way.

    Source: https://www.tensorflow.org/guide/gpu#limiting_gpu_memory_growth
    """
    config = config or tf.config
    for gpu in config.get_visible_devices("GPU"):
        try:
            if limit_bytes is not None:
                _limit(gpu, limit_bytes // _MIB, config)
            elif growth:
                _grow(gpu, config)
        except RuntimeError as error:
            limit = f"memory_limit_bytes={limit_bytes}"
            raise RuntimeError(
                f"{'memory_growth=True' if limit_bytes is None else limit} must be set before "
                "TensorFlow uses the GPUs, and it has used them. Create the AccelStrategy before "
                "anything else that computes (a model, a tensor, tf.config.list_logical_devices), "
                "or pass memory_growth=False to leave the GPUs as they are."
            ) from error


def _grow(gpu: Any, config: Any) -> None:
    divided = config.get_logical_device_configuration(gpu)  # which leaves nothing to grow
    if not divided and not config.experimental.get_memory_growth(gpu):
        config.experimental.set_memory_growth(gpu, True)


def _limit(gpu: Any, limit_mib: int, config: Any) -> None:
    present = config.get_logical_device_configuration(gpu) or ()
    if [device.memory_limit for device in present] != [limit_mib]:
        limited = tf.config.LogicalDeviceConfiguration(memory_limit=limit_mib)
        config.set_logical_device_configuration(gpu, [limited])
