"""8 bits for ONNX Runtime, by its own calibrated quantizer.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from tfaccel.inference.engines.eight_bits import Arrays, EightBits
from tfaccel.system.device import read_cpu

# The shares of the noisiest ops that stay in float, tried until accuracy suffices.
_SHARES = (0.0, 0.1, 0.25, 0.5)
# Samples by which noise is measured, few as all of a model's tensors are held for them.
_LOOKED_AT = 4
# Op types whose 8-bit products are added up without overflow.
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "avx10_2"})


def quantized(
    model: bytes, inputs: Sequence[str], outputs: Sequence[str], eight: EightBits
) -> bytes:
    """The model with weights and activations in 8 bits, less where that loses too much.

    Where the metric falls by more than is allowed, the ops that add the most noise are left in
    float, more of them each time.

    Args:
        model: in float32, as ONNX has it.
        inputs, outputs: the names of its tensors.
        eight: samples to calibrate on, and what may be lost.

    Returns:
        The first model that loses little enough, else the one that loses least.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    found: list[tuple[float, bytes]] = []
    with tempfile.TemporaryDirectory() as name, _unheard():
        folder = pathlib.Path(name)
        (folder / "model.onnx").write_bytes(model)
        plain, small = folder / "plain.onnx", folder / "small.onnx"
        # Symbolic shapes need one more package, and convolutional nets gain nothing by them.
        quant_pre_process(folder / "model.onnx", plain, skip_symbolic_shape=True)
        least = _score(plain.read_bytes(), inputs, outputs, eight) - eight.max_drop
        noisy: list[list[str]] = []
        for share in _SHARES:
            kept = noisy[: int(np.ceil(share * len(noisy)))]
            _quantize(plain, small, inputs, eight, {node for group in kept for node in group})
            score = _score(small.read_bytes(), inputs, outputs, eight)
            found.append((score, small.read_bytes()))
            if score >= least or not eight.in_time():
                break
            noisy = noisy or _noisy(plain, small, inputs, eight)
    return max(found, key=lambda one: (one[0] >= least, one[0]))[1]


def _quantize(
    plain: pathlib.Path,
    small: pathlib.Path,
    inputs: Sequence[str],
    eight: EightBits,
    kept: Collection[str],
) -> None:
    from onnxruntime.quantization import QuantType, quantize_static

    unsigned = read_cpu().flags & {"avx2", "avx512f"}
    quantize_static(
        plain,
        small,
        _Samples(inputs, eight.samples()),
        per_channel=True,
        # As `quantize_static` has it for x86 and for ARM; weights of 7 bits can't overflow.
        activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
        reduce_range=bool(unsigned) and not read_cpu().flags & _VNNI,
        nodes_to_exclude=sorted(kept),
    )


def _noisy(
    plain: pathlib.Path, small: pathlib.Path, inputs: Sequence[str], eight: EightBits
) -> list[list[str]]:
    """Groups of nodes that add noise in 8 bits, the noisiest first.

    Noise is known at quantized tensors. The nodes between two of them are a group, which adds the
    difference of the noise behind it and before it.
    """
    import onnx
    from onnxruntime.quantization import qdq_loss_debug as debug

    tensors = []
    for path in (plain, small):
        more = path.with_suffix(".more.onnx")
        debug.modify_model_output_intermediate_tensors(path, more)
        few = list(eight.samples())[:_LOOKED_AT]
        tensors.append(debug.collect_activations(str(more), _Samples(inputs, iter(few))))
    told = debug.compute_activation_error(debug.create_activation_matching(tensors[1], tensors[0]))
    # From decibels to a share of the signal's power.
    noise = {name: 10 ** (-one["xmodel_err"] / 10) for name, one in told.items() if len(one) > 1}
    nodes = {name: node for node in onnx.load(plain).graph.node for name in node.output}
    groups = []
    for name in noise:
        group, before = _behind(name, nodes, noise)
        added = noise[name] - max((noise[one] for one in before), default=0.0)
        # What it reads is rounded by those that make it.
        group += [nodes[one].name for one in before if one in nodes]
        groups.append((added, group))
    return [
        group for added, group in sorted(groups, key=lambda one: -one[0]) if added > 0 and group
    ]


def _behind(
    name: str, nodes: dict[str, Any], stops: Collection[str]
) -> tuple[list[str], list[str]]:
    """The nodes that make a tensor, up to the tensors at which to stop, and these."""
    group: list[str] = []
    before: list[str] = []
    ahead = [name]
    while ahead:
        node = nodes.get(ahead.pop())
        if node is None or node.name in group:
            continue
        group.append(node.name)
        for one in node.input:
            (before if one in stops else ahead).append(one)
    return group, before


def _score(model: bytes, inputs: Sequence[str], outputs: Sequence[str], eight: EightBits) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return eight.scored(
        lambda arrays: session.run(list(outputs), dict(zip(inputs, arrays, strict=True)))
    )


class _Samples:
    """Samples as ONNX Runtime's CalibrationDataReader."""

    def __init__(self, inputs: Sequence[str], samples: Iterator[Arrays]):
        self._inputs, self._samples = inputs, samples

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The inputs of one more sample; None at the end."""
        arrays = next(self._samples, None)
        return None if arrays is None else dict(zip(self._inputs, arrays, strict=True))

    def __iter__(self) -> "Iterator[dict[str, np.ndarray]]":
        return iter(self.get_next, None)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keeps the quantizer's advice out of the user's log."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
