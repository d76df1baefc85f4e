"""Which `tf.distribute` strategy: by name, by instance, or by looking around."""

import functools
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfaccel.distribute.cluster import Cluster, find_cluster, local_devices
from tfaccel.distribute.multi_worker import MultiWorker
from tfaccel.distribute.replicas import Mirrored

NAMES = ("auto", "default", "one_device", "mirrored", "multi_worker")


# A `tf.distribute.Strategy`, and why it was chosen, in words.
Choice = tuple[Any, str]


def choose(strategy: Any, environ: Mapping[str, str]) -> Choice:
    """The strategy that a name, an instance or `"auto"` stands for, by the environment variables.

    Raises:
        ValueError: if it is none of the names, or a strategy that can't train.
        RuntimeError: if it is too late to start a cluster.
    """
    if isinstance(strategy, tf.distribute.Strategy):
        return _usable(strategy), "it was given"
    if not isinstance(strategy, str) or strategy not in NAMES:
        raise ValueError(
            f"strategy must be a tf.distribute.Strategy or one of {', '.join(map(repr, NAMES))}. "
            f"Received: {strategy!r}"
        )
    return _auto(environ) if strategy == "auto" else _named(strategy, environ)


def _auto(environ: Mapping[str, str]) -> Choice:
    cluster = find_cluster(environ)
    if cluster is not None:
        workers = f"{cluster.num_workers} workers; this is {cluster.task}"
        return _multi_worker(cluster), f"{cluster.source} names {workers}"
    devices = local_devices()
    if len(devices) > 1:
        return _mirrored(devices), f"TensorFlow sees {', '.join(devices)}"
    return tf.distribute.get_strategy(), f"TensorFlow sees {devices[0]} only"


def _named(name: str, environ: Mapping[str, str]) -> Choice:
    reason = f"{name!r} was asked for"
    if name == "default":
        return tf.distribute.get_strategy(), reason
    if name == "multi_worker":
        return _multi_worker(find_cluster(environ)), reason
    devices = local_devices()
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0]), reason
    return _mirrored(devices), reason


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> Mirrored:
    """One strategy for the same devices, as two would number their collective operations alike.

    TensorFlow would take one strategy's operation for the other's, and fail.
    """
    return Mirrored(list(devices))


@functools.cache
def _multi_worker(cluster: Cluster | None) -> MultiWorker:
    """One strategy for a cluster, as a process can join it once."""
    try:
        return MultiWorker(cluster.resolver if cluster else None)
    except RuntimeError as error:
        # TensorFlow's own words are about collective ops.
        if "program startup" not in str(error):
            raise
        raise RuntimeError(
            "Several workers can only be joined before TensorFlow is used, and it has been used. "
            "Create the AccelStrategy before anything else that computes, such as a model or a "
            "tensor."
        ) from error


def _usable(strategy: Any) -> Any:
    """The strategy, unless it is one that Keras 3 can't train with."""
    plain = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if plain and not isinstance(strategy, MultiWorker) and strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "Keras 3 can't train with a plain tf.distribute.MultiWorkerMirroredStrategy "
            "(keras#20585), and its methods can't be mended from outside. Pass "
            'strategy="multi_worker" or, for arguments of its own, '
            "tfaccel.distribute.MultiWorker(cluster_resolver, communication_options)."
        )
    return strategy
