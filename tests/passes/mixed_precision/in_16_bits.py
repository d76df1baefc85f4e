"""Models and workloads in 16 bits."""

import tensorflow as tf

import tfaccel
from tfaccel.core.workload import Workload
from tfaccel.passes import MixedPrecision
from tfaccel.steps.compiled_step import build_step
from tfaccel.steps.snapshot import build_all
from tfaccel.system.device import Device

ZEN5 = Device("CPU", "EPYC", 2, frozenset({"avx2", "avx512_bf16"}))


def compiled(model, **arguments):
    model.compile(**{"optimizer": "sgd", "loss": "mse", **arguments})
    return model


def workload_of(model, x, y, device=ZEN5):
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(len(x))
    build_all(model, data.element_spec)
    return Workload(model, (next(iter(data)),), data.element_spec, device=device)


def run(workload, count):
    """Steps under float16; the scale after each, and the optimizer's iterations."""
    scales = []
    item = MixedPrecision("float16")
    step = build_step(workload, tfaccel.Plan((item,)))
    feed = iter(tf.data.Dataset.from_tensors(workload.batches[0]).repeat())
    for _ in range(count):
        step(feed)
        scale = step.scratch["mixed_precision"]
        scales.append((float(scale.value.numpy()), int(scale.good_steps.numpy())))
    return scales
