"""How much GPU memory TensorFlow takes, set before it takes any."""

import dataclasses
from typing import Any

import tensorflow as tf

_MIB = 2**20
_TOO_LATE = (
    "{argument}={value} must be set before TensorFlow uses the GPUs, and it has used them. "
    "Create the AccelStrategy before anything else that computes (a model, a tensor, "
    "tf.config.list_logical_devices), or pass memory_growth=False to leave the GPUs as they are."
)


@dataclasses.dataclass(frozen=True)
class GpuMemory:
    """How much memory TensorFlow may take of each GPU.

    A limit sets aside that much at once, and TensorFlow has no growth beside it, so
    with a limit `growth` is of no matter.

    Args:
        growth: take memory as it is needed, and not all of it at the start. False
            leaves the GPUs as they are.
        limit_bytes: take no more than this of each GPU; None for no limit.

    Raises:
        TypeError: if `growth` isn't a bool, or `limit_bytes` not an int.
        ValueError: if `limit_bytes` is below 1 MiB, TensorFlow's unit.

    Source: https://www.tensorflow.org/guide/gpu#limiting_gpu_memory_growth
    """

    growth: bool = True
    limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.growth, bool):
            raise TypeError(f"memory_growth must be True or False. Received: {self.growth!r}")
        limit = self.limit_bytes
        if limit is None:
            return
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"memory_limit_bytes must be an int or None. Received: {limit!r}")
        if limit < _MIB:
            raise ValueError(
                f"memory_limit_bytes must be at least {_MIB} (1 MiB): it is a number of bytes "
                f"of each GPU. Received: {limit!r}"
            )

    def set_up(self, config: Any = tf.config) -> None:
        """Sets every visible GPU up. Does nothing on a machine without GPUs.

        Args:
            config: `tf.config`, or what stands for it in a test.

        Raises:
            RuntimeError: if TensorFlow has used the GPUs already, in another way.
        """
        for gpu in config.get_visible_devices("GPU"):
            if self.limit_bytes is not None:
                self._limit(gpu, self.limit_bytes, config)
            elif self.growth:
                self._grow(gpu, config)

    def _grow(self, gpu: Any, config: Any) -> None:
        if config.get_logical_device_configuration(gpu):
            return  # Its memory has been divided already, which leaves nothing to grow.
        if config.experimental.get_memory_growth(gpu):
            return
        try:
            config.experimental.set_memory_growth(gpu, True)
        except RuntimeError as error:
            message = _TOO_LATE.format(argument="memory_growth", value=True)
            raise RuntimeError(message) from error

    def _limit(self, gpu: Any, limit_bytes: int, config: Any) -> None:
        limit_mib = limit_bytes // _MIB
        present = config.get_logical_device_configuration(gpu) or ()
        if [device.memory_limit for device in present] == [limit_mib]:
            return
        try:
            config.set_logical_device_configuration(
                gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=limit_mib)]
            )
        except RuntimeError as error:
            message = _TOO_LATE.format(argument="memory_limit_bytes", value=limit_bytes)
            raise RuntimeError(message) from error
