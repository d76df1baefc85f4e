"""Engines in turns with `predict_on_batch`: by tfaccel, and the bare engine called by hand."""

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

import tfaccel
from tfaccel.inference.engines import ENGINES, engine_of
from tfaccel.measure.numerics import relative_error
from tfaccel.measure.timing import median_interval, percentiles

# Turns before the first that counts.
_WARM = 2
STOCK, PLANS, ENGINE, BARE = "predict_on_batch", "TensorFlow's plans", "with engines", "by hand"


def measure(
    model: keras.Model,
    x: np.ndarray,
    other: np.ndarray,
    engines: Sequence[str],
    seconds: float,
    turns: int,
) -> dict[str, Any]:
    """All sides in turns, from NumPy to NumPy; ratios are made within each turn.

    Args:
        model: to predict with.
        x: a batch.
        other: another one, on which outputs are compared.
        engines: what tfaccel may use beside TensorFlow.
        seconds: what each choice may take.
        turns: how often each side runs.
    """
    usual: dict[str, Any] = {"max_tuning_seconds": seconds, "cache_dir": False}
    others = [item.name for item in ENGINES if item.name not in engines]
    plans = tfaccel.accelerate(model, x, excludes=[item.name for item in ENGINES], **usual)
    fast = tfaccel.accelerate(model, x, excludes=others, **usual)
    sides: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        STOCK: model.predict_on_batch,
        PLANS: lambda batch: plans(batch).numpy(),
        ENGINE: lambda batch: fast(batch).numpy(),
    }
    engine = engine_of(fast.plan)
    if engine is not None and engine.name in _BY_HAND:
        sides[BARE] = _BY_HAND[engine.name](model, x, engine)
    taken = _in_turns(sides, x, turns)
    bare: dict[str, list[float]] = {}
    if BARE in sides:
        # By themselves: after TensorFlow's threads have run, an engine's own begin later.
        bare = _in_turns({name: sides[name] for name in (ENGINE, BARE)}, x, 3 * turns)
    expected = model.predict_on_batch(other)
    return {
        "plan": str(fast.plan),
        "plan_without_engines": str(plans.plan),
        "seconds": taken,
        "seconds_by_hand": bare,
        "percentiles": {name: percentiles(own) for name, own in taken.items()},
        "speedup": {name: _ratio(taken[STOCK], own) for name, own in taken.items()},
        "overhead": _ratio(bare[ENGINE], bare[BARE]) if bare else None,
        "drift": {name: relative_error(expected, side(other)) for name, side in sides.items()},
        "report": fast.report.to_dict(),
    }


def _in_turns(
    sides: dict[str, Callable[[np.ndarray], np.ndarray]], x: np.ndarray, turns: int
) -> dict[str, list[float]]:
    """Seconds of each side's calls; who begins a turn is who ended the one before."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(_WARM + turns):
        for name in sides if turn % 2 else reversed(sides):
            start = time.perf_counter()
            sides[name](x)
            if turn >= _WARM:
                taken[name].append(time.perf_counter() - start)
    return taken


def _ratio(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    return median_interval([a / b for a, b in zip(slow, fast, strict=True)])


def _openvino_by_hand(model: keras.Model, x: np.ndarray, engine: Any) -> Callable[..., Any]:
    """What OpenVINO's guide has one write: convert, compile for the shape, infer."""
    import openvino
    import tensorflow as tf

    function = tf.function(lambda inputs: model(inputs, training=False), autograph=False)
    converted = openvino.convert_model(
        function.get_concrete_function(tf.TensorSpec(x.shape, x.dtype))
    )
    compiled = openvino.Core().compile_model(converted, "CPU", engine.config(None))
    request = compiled.create_infer_request()
    return lambda batch: request.infer([batch], share_inputs=True)[compiled.output(0)]


def _onnxruntime_by_hand(model: keras.Model, x: np.ndarray, engine: Any) -> Callable[..., Any]:
    """What Keras's guide has one write: export, open a session, run it."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        model.export(f"{folder}/model.onnx", format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(
            f"{folder}/model.onnx", providers=["CPUExecutionProvider"]
        )
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


_BY_HAND = {"openvino": _openvino_by_hand, "onnxruntime": _onnxruntime_by_hand}
