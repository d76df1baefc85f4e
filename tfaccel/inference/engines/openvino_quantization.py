"""8 bits for OpenVINO, by NNCF.

Source: https://docs.openvino.ai, "Quantizing with Accuracy Control"
"""

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tfaccel.compat.patching import class_attribute, instance_attribute
from tfaccel.inference.engines.eight_bits import CALIBRATION, Arrays, EightBits

# NNCF's loggers and its notices are one for the whole process.
_LOCK = threading.Lock()
_TOLD = ("start_session", "send_event", "end_session")


class _OutOfTimeError(Exception):
    """The search for ops that 8 bits harm has used its time."""


def quantized(model: Any, eight: EightBits) -> Any:
    """The model with weights and activations in 8 bits, less where that loses too much.

    Where the metric falls by more than is allowed, NNCF ranks the ops and takes them back to
    float one by one, until little enough is lost or the time is up.

    Args:
        model: OpenVINO's, in float32; nothing of it is changed.
        eight: samples to calibrate on, and what may be lost.
    """
    with _LOCK, _unheard():
        import nncf

        samples = nncf.Dataset(list(eight.samples()))
        subset = min(eight.count, CALIBRATION)
        small = nncf.quantize(model, samples, subset_size=subset)
        if eight.scored(_run(model)) - eight.scored(_run(small)) <= eight.max_drop:
            return small
        try:
            return nncf.quantize_with_accuracy_control(
                model,
                samples,
                nncf.Dataset(eight.slices()),
                lambda compiled, slices: (_scored(compiled, slices, eight), None),
                max_drop=eight.max_drop,
                subset_size=subset,
            )
        except _OutOfTimeError:
            return small  # whose metric shows the loss


def _run(model: Any) -> Any:
    import openvino

    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda arrays: _outputs(compiled, arrays)


def _outputs(compiled: Any, arrays: Arrays) -> list[np.ndarray]:
    found = compiled(list(arrays))
    return [np.array(found[port]) for port in compiled.outputs]


def _scored(compiled: Any, slices: Iterable[slice], eight: EightBits) -> float:
    """The metric on some of the samples."""
    if not eight.in_time():
        raise _OutOfTimeError
    rows = list(slices)
    parts = [_outputs(compiled, [array[one] for array in eight.inputs]) for one in rows]
    joined = [np.concatenate(part) for part in zip(*parts, strict=True)]
    places = np.arange(eight.count)
    return eight.score(joined, np.concatenate([places[one] for one in rows]))


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keeps NNCF from printing, and from reporting the call to its makers."""
    import nncf

    said = logging.getLogger("nncf")
    before = said.level
    said.setLevel(logging.ERROR)
    try:
        with contextlib.ExitStack() as stack:
            told = getattr(getattr(nncf, "telemetry", None), "telemetry", None)
            for name in _TOLD if told is not None else ():
                stack.enter_context(instance_attribute(told, name, lambda *args, **kwargs: None))
            stack.enter_context(_without_bars())
            yield
    finally:
        said.setLevel(before)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps NNCF from drawing bars of its progress."""
    try:
        from nncf.common.logging.track_progress import track
    except ImportError:  # moved: then it draws them
        yield
        return
    own = track.__init__

    def undrawn(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs | {"disable": True})

    with class_attribute(track, "__init__", undrawn):
        yield
