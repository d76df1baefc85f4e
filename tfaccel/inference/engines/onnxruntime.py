"""ONNX Runtime, by way of tf2onnx: the extra `onnx`."""

import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import itertools
import logging
import math
import os
import pathlib
import types
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from tfaccel.autotune.trial import error_line
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.core.workload import Workload
from tfaccel.inference.engines.eight_bits import EightBits
from tfaccel.inference.engines.engine import Engine, Runner, unknown_ops
from tfaccel.inference.engines.forward import Forward
from tfaccel.inference.engines.onnx_quantization import quantized
from tfaccel.system.cpu import usable_cores

_FILE = "model.onnx"
CONVERTER = "tf2onnx"
# Importing tf2onnx sets it, for this process and all that it starts.
_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


@dataclasses.dataclass(frozen=True)
class ONNXRuntime(Engine):
    """ONNX Runtime on the CPU, in float32 or 8 bits.

    One session serves batches of every size, and nothing is padded. Under the hint `latency` all
    cores work on each op; under `throughput` a batch is cut in as many pieces as there are
    cores, and each piece has one to itself.

    Source: https://onnxruntime.ai and https://github.com/onnx/tensorflow-onnx
    """

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"
    module: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnx"
    # It has no products in bfloat16 on x86.
    precisions: ClassVar[tuple[str, ...]] = ("float32", "int8")
    converts_bfloat16: ClassVar[bool] = False
    quantizer: ClassVar[str] = "onnx"
    quantizer_extra: ClassVar[str] = "onnx"

    def unsupported(self, workload: Workload) -> Unsupported | None:
        found = super().unsupported(workload)
        if found is None and importlib.util.find_spec(CONVERTER) is None:
            return Refusal.MISSING(
                f"{CONVERTER} is not installed, which converts models for {self.title}",
                f"pip install 'tfaccel[{self.extra}]'",
            )
        return found

    def build(
        self,
        forward: Forward,
        sample: Sequence[Any],
        cache: pathlib.Path | None = None,
        eight_bits: EightBits | None = None,
    ) -> Runner:
        model = forward.made(self.name, lambda: _converted(forward))
        names = forward.input_names, forward.output_names
        if eight_bits is not None:
            model = forward.made(f"{self.name} int8", lambda: quantized(model, *names, eight_bits))
        count = int(sample[0].shape[0]) if forward.has_open_batch else 0
        return _Runner(model, *names, self.hint, count)

    def load(self, folder: pathlib.Path, names: Sequence[str], sizes: Sequence[Any]) -> Runner:
        inputs, outputs = list(names[: len(sizes)]), list(names[len(sizes) :])
        count = sizes[0][0] if sizes and sizes[0] else 0
        return _Runner((folder / _FILE).read_bytes(), inputs, outputs, self.hint, count)


class _Runner(Runner):
    """A model that ONNX Runtime runs.

    Args:
        model: as ONNX has it, in bytes.
        inputs, outputs: the names of its tensors.
        hint: what its threads are for.
        count: how many samples the sample has; 0 where batches may not be cut.

    Raises:
        ValueError: it has other tensors.
    """

    def __init__(
        self, model: bytes, inputs: Sequence[str], outputs: Sequence[str], hint: str, count: int
    ):
        self._model, self._inputs, self._outputs = model, list(inputs), list(outputs)
        self._cores = usable_cores()
        shares = hint == "throughput"
        self._session = _session(model, 1 if shares else self._cores)
        _check_names(self._session, self._inputs, self._outputs)
        splits = shares and count and _has_open_batch(self._session)
        # How many samples each piece has; 0 where batches are left whole.
        self._piece = math.ceil(count / self._cores) if splits else 0
        self._threads = concurrent.futures.ThreadPoolExecutor(self._cores, "tfaccel-onnxruntime")

    def run(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        arrays = [np.asarray(array) for array in arrays]
        if not self._piece or len(arrays[0]) <= self._piece:
            return self._run(arrays)
        starts = range(0, len(arrays[0]), self._piece)
        pieces = [[array[i : i + self._piece] for array in arrays] for i in starts]
        parts = list(self._threads.map(self._run, pieces))
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def save(self, folder: pathlib.Path) -> None:
        (folder / _FILE).write_bytes(self._model)

    def _run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._session.run(self._outputs, dict(zip(self._inputs, arrays, strict=True)))


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Else threads that wait for another run keep the cores from TensorFlow.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _check_names(session: Any, inputs: list[str], outputs: list[str]) -> None:
    takes = sorted(port.name for port in session.get_inputs())
    gives = sorted(port.name for port in session.get_outputs())
    if takes != sorted(inputs) or gives != sorted(outputs):
        raise ValueError(
            f"{_FILE} must take {sorted(inputs)} and give {sorted(outputs)}. "
            f"Received: {takes} and {gives}"
        )


def _has_open_batch(session: Any) -> bool:
    ports = (*session.get_inputs(), *session.get_outputs())
    return all(port.shape and not isinstance(port.shape[0], int) for port in ports)


def _converted(forward: Forward) -> bytes:
    """The model of a graph as ONNX has it.

    It is what Keras's `model.export(format="onnx")` asks tf2onnx for, of a graph that is traced
    already.
    """
    import onnx

    with _unheard():
        import tf2onnx

        given = types.SimpleNamespace(get_concrete_function=lambda: forward.function)
        try:
            with _without_xla(forward.function.graph):
                model, _ = tf2onnx.convert.from_function(
                    given, input_signature=(), custom_op_handlers={"Erfc": (_erfc, [])}
                )
        except Exception as error:
            raise ValueError(f"tf2onnx can't convert it: {error_line(error)}") from error
    # tf2onnx leaves ops that it does not know as they are.
    unknown = {n.op_type for n in model.graph.node if not onnx.defs.has(n.op_type, n.domain)}
    if unknown:
        raise ValueError(unknown_ops(ONNXRuntime.title, sorted(unknown), forward))
    _keep_captured(model.graph, forward.function)
    return model.SerializeToString()


@contextlib.contextmanager
def _without_xla(graph: Any) -> Iterator[None]:
    """A block in which a graph is written without marks for XLA (as of grouped convolutions).

    TensorFlow never inlines functions with such a mark, and ONNX has no calls of functions.
    """
    write = graph.as_graph_def

    def written(*args: Any, **kwargs: Any) -> Any:
        definition = write(*args, **kwargs)
        functions = definition.library.function
        for node in itertools.chain(definition.node, functions, *(f.node_def for f in functions)):
            node.attr.pop("_XlaMustCompile", None)
        return definition

    graph.as_graph_def = written
    try:
        yield
    finally:
        del graph.as_graph_def  # the class's own is seen again


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """`Erfc`, which GELU is made of in TensorFlow, as 1 - `Erf`; tf2onnx knows the latter."""
    import tf2onnx

    (output,) = node.output
    shape, dtype = context.get_shape(output), context.get_dtype(output)
    one = np.ones((), tf2onnx.utils.map_onnx_to_numpy_type(dtype))
    constant = context.make_const(tf2onnx.utils.make_name("one"), one)
    kinds = {"shapes": [shape], "dtypes": [dtype]}
    erf = context.make_node("Erf", node.input, **kinds)
    context.remove_node(node.name)
    parts = [constant.output[0], erf.output[0]]
    context.make_node("Sub", parts, name=node.name, outputs=[output], **kinds)


def _keep_captured(graph: Any, function: Any) -> None:
    """Makes constants of a function's captured tensors, which would else become inputs."""
    import onnx

    captured, used = function.captured_inputs, set(_read_by(graph))
    names = [tensor.name for tensor in function.inputs[len(function.inputs) - len(captured) :]]
    for name, tensor in zip(names, captured, strict=True):
        port = next((port for port in graph.input if port.name == name), None)
        if port is not None:
            graph.input.remove(port)
        if port is not None and name in used:
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(tensor), name))


def _read_by(graph: Any) -> Iterator[str]:
    """The tensors that a graph's nodes read, those of the graphs in them included."""
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _read_by(inner)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keeps tf2onnx from logging what is raised anyway, and from changing the environment."""
    level, said = os.environ.get(_LOG_LEVEL), logging.getLogger(CONVERTER)
    before = said.level
    said.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        said.setLevel(before)
        if level is None:
            os.environ.pop(_LOG_LEVEL, None)
        else:
            os.environ[_LOG_LEVEL] = level
