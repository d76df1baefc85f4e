"""The most memory that was in use."""

import sys

import tensorflow as tf

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def host_peak_bytes() -> int | None:
    """The most memory that this process has held so far; None where the system does not tell.

    Source: getrusage(2): `ru_maxrss` is in KiB on Linux and in bytes on macOS.
    """
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak_bytes() -> int | None:
    """The most memory that TensorFlow has held on the first GPU; None without a GPU.

    Source: https://www.tensorflow.org/api_docs/python/tf/config/experimental/get_memory_info
    """
    if not tf.config.list_logical_devices("GPU"):
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
