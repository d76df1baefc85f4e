"""OpenVINO, Intel's toolkit for predictions: the extra `openvino`."""

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tfaccel.autotune.trial import error_line
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.core.workload import Workload
from tfaccel.inference.engines.eight_bits import EightBits
from tfaccel.inference.engines.engine import EIGHT_BITS, Engine, Runner, unknown_ops
from tfaccel.inference.engines.forward import Forward
from tfaccel.inference.engines.openvino_quantization import quantized
from tfaccel.system.arguments import one_of
from tfaccel.system.cache_dir import compiled_directory

# As https://docs.openvino.ai has them under "CPU device" and "High-level performance hints".
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
_FILE = "model.xml"
_DEVICES = ("CPU", "GPU")
# Its GPUs have no bfloat16; float16, which it would take by itself, is compared with nothing here.
_ON_A_GPU = ("float32", EIGHT_BITS)
# How its converter names what it does not know.
_UNKNOWN_OPS = re.compile(r"[Nn]o (?:conversion rule|translator) found for [^:]*: *([\w, ]+)")


@dataclasses.dataclass(frozen=True)
class OpenVINO(Engine):
    """OpenVINO on the CPU, or on a GPU of Intel's that TensorFlow can't use.

    The graph is compiled for the sample's size and, at the first batch of another one, once
    more for all others, so that no size is compiled for by itself and nothing is padded. Under
    the hint `throughput` a batch is cut in as many pieces as the device works on at once.

    Args:
        device: `"CPU"` or `"GPU"`, by OpenVINO's plug-in, which runs OpenCL.

    Source: https://docs.openvino.ai
    """

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    module: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    converts_bfloat16: ClassVar[bool] = False
    quantizer: ClassVar[str] = "nncf"
    quantizer_extra: ClassVar[str] = "int8"

    device: str = "CPU"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("device", self.device, _DEVICES)
        if self.device == "GPU" and self.precision not in _ON_A_GPU:
            raise ValueError(
                f"`precision` must be one of {', '.join(_ON_A_GPU)} on a GPU. "
                f"Received: {self.precision!r}"
            )

    def unsupported(self, workload: Workload) -> Unsupported | None:
        found = super().unsupported(workload)
        if found is None and self.device not in found_devices():
            return Refusal.DEVICE(
                "OpenVINO finds no GPU here",
                "install the driver of an Intel GPU (Debian: intel-opencl-icd)",
            )
        return found

    def cache_key(self, workload: Workload) -> Any:
        version, gpu = super().cache_key(workload), found_devices().get("GPU")
        return version if gpu is None else (version, gpu)

    def variants(self, workload: Workload) -> Sequence[Engine]:
        """Those on the CPU and, where OpenVINO finds a GPU, the same there."""
        here = super().variants(workload)
        there = [
            dataclasses.replace(self, precision=one.precision, hint=one.hint, device="GPU")
            for one in here
            if one.precision in _ON_A_GPU and "GPU" in found_devices()
        ]
        return [*here, *there]

    def build(
        self,
        forward: Forward,
        sample: Sequence[Any],
        cache: pathlib.Path | None = None,
        eight_bits: EightBits | None = None,
    ) -> Runner:
        model = forward.made(self.name, lambda: _converted(forward))
        if eight_bits is not None:
            model = forward.made(f"{self.name} int8", lambda: quantized(model, eight_bits))
        sizes = [tuple(map(int, leaf.shape)) for leaf in sample]
        splits = self.hint == "throughput" and forward.has_open_batch
        return _Runner(model, self, sizes, cache, splits)

    def load(self, folder: pathlib.Path, names: Sequence[str], sizes: Sequence[Any]) -> Runner:
        import openvino

        model = openvino.Core().read_model(folder / _FILE)
        found = [port.names for port in (*model.inputs, *model.outputs)]
        pairs = zip(names, found, strict=False)
        if len(found) != len(names) or any(name not in own for name, own in pairs):
            raise ValueError(f"{_FILE} must have the tensors {list(names)}. Received: {found}")
        splits = self.hint == "throughput" and _has_open_batch(model)
        # What was saved on a machine with a GPU is the same model on one without.
        engine = self if self.device in found_devices() else dataclasses.replace(self, device="CPU")
        return _Runner(model, engine, [tuple(size) for size in sizes], None, splits)

    def config(self, cache: pathlib.Path | None) -> dict[str, Any]:
        """The options with which OpenVINO compiles."""
        told = {
            "PERFORMANCE_HINT": self.hint.upper(),
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self.precision],
        }
        return (
            told
            if cache is None
            else told | {"CACHE_DIR": str(compiled_directory(cache) / self.name)}
        )


class _Runner(Runner):
    """A model that OpenVINO runs.

    Args:
        model: converted, of any size.
        engine: the configuration.
        sizes: shapes of the inputs to compile for by themselves.
        cache: for what compiling made; None for none.
        splits: whether a batch may be cut in pieces.
    """

    def __init__(
        self,
        model: Any,
        engine: OpenVINO,
        sizes: list[tuple[int, ...]],
        cache: pathlib.Path | None,
        splits: bool,
    ):
        self._model, self._engine, self._cache = model, engine, cache
        self._any = _Compiled(model, engine, cache) if splits else None
        count = sizes[0][0] if sizes and sizes[0] else 0
        # How many samples each piece has; 0 where batches are left whole.
        self._piece = math.ceil(count / self._any.at_once) if self._any and count else 0
        if self._piece:
            sizes = [(self._piece, *size[1:]) for size in sizes]
        self._sizes = sizes
        self._exact = _Compiled(_resized(model, sizes), engine, cache)

    def run(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        arrays = [np.asarray(array) for array in arrays]
        if self._piece and len(arrays[0]) > self._piece:
            return self._in_pieces(arrays)
        return self._for(arrays).run(arrays)

    def run_any_size(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        return self._any_size().run([np.asarray(array) for array in arrays])

    def save(self, folder: pathlib.Path) -> None:
        import openvino

        openvino.save_model(self._model, folder / _FILE, compress_to_fp16=False)

    def _for(self, arrays: list[np.ndarray]) -> "_Compiled":
        exact = [array.shape for array in arrays] == self._sizes
        return self._exact if exact else self._any_size()

    def _any_size(self) -> "_Compiled":
        if self._any is None:
            # Two threads may both compile it: the last one stays, and both are right.
            self._any = _Compiled(self._model, self._engine, self._cache)
        return self._any

    def _in_pieces(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """All pieces at once; the last may be smaller."""
        starts = range(0, len(arrays[0]), self._piece)
        pieces = [[array[i : i + self._piece] for array in arrays] for i in starts]
        begun = [(compiled := self._for(piece), compiled.begin(piece)) for piece in pieces]
        parts = [compiled.end(request) for compiled, request in begun]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]


class _Compiled:
    """A compiled model. Each call has a request of its own, which others use after it."""

    def __init__(self, model: Any, engine: OpenVINO, cache: pathlib.Path | None):
        import openvino

        config = engine.config(cache)
        self._compiled = openvino.Core().compile_model(model, engine.device, config)
        self._outputs = range(len(self._compiled.outputs))
        self._free: collections.deque[Any] = collections.deque()

    @property
    def at_once(self) -> int:
        """How many requests the device works on at once."""
        return int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs, copied out of the request."""
        request = self._request()
        request.infer(arrays, share_inputs=True, share_outputs=True)
        return self._copied(request)

    def begin(self, arrays: list[np.ndarray]) -> Any:
        """Begins a run; the arrays must stay until its end."""
        request = self._request()
        request.start_async(arrays, share_inputs=True)
        return request

    def end(self, request: Any) -> list[np.ndarray]:
        """Waits for a run that was begun; gives its outputs."""
        request.wait()
        return self._copied(request)

    def _request(self) -> Any:
        try:
            return self._free.pop()
        except IndexError:
            return self._compiled.create_infer_request()

    def _copied(self, request: Any) -> list[np.ndarray]:
        found = [np.array(request.get_output_tensor(place).data) for place in self._outputs]
        self._free.append(request)
        return found


@functools.cache
def found_devices() -> dict[str, str]:
    """What a model can be compiled for: the CPU, and the name of the GPU that OpenVINO finds."""
    found = {"CPU": ""}
    if importlib.util.find_spec("openvino") is None:
        return found
    import openvino

    with contextlib.suppress(Exception):  # whatever a driver does while it starts
        core = openvino.Core()
        # Several are "GPU.0" and so on, of which "GPU" is the first.
        if any(name.partition(".")[0] == "GPU" for name in core.available_devices):
            found["GPU"] = str(core.get_property("GPU", "FULL_DEVICE_NAME"))
    return found


def _converted(forward: Forward) -> Any:
    """OpenVINO's model of a graph, its tensors in the graph's order."""
    import openvino

    try:
        found = _by_front_end(forward.function)
    except Exception as error:
        raise ValueError(_cause(error, forward)) from error
    _widen_sums(found)
    inputs = _ordered(found.inputs, [str(spec.name) for spec in forward.inputs])
    outputs = _ordered(found.outputs, [str(spec.name) for spec in forward.outputs])
    results, parameters = ([port.get_node() for port in ports] for ports in (outputs, inputs))
    return openvino.Model(results, parameters, "model")


def _by_front_end(function: Any) -> Any:
    """A concrete function as `openvino.convert_model` converts it.

    That function reports each call to OpenVINO's makers, unless the user has opted out; this is the
    part of it that converts.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.tensorflow.utils import create_tf_graph_iterator

    front_end = FrontEndManager().load_by_framework("tf")
    graph = create_tf_graph_iterator(function, None, None, None, True)
    return front_end.convert(front_end.load(graph))


def _widen_sums(model: Any) -> None:
    """Makes products of integers add up in float32, as Keras's quantized models need.

    OpenVINO's converter leaves out that TensorFlow sums them in int32.
    """
    from openvino import Type, opset13

    for node in model.get_ordered_ops():
        sources = [port.get_source_output() for port in node.inputs()]
        if node.get_type_name() != "MatMul" or not sources[0].get_element_type().is_integral():
            continue
        wide = [opset13.convert(source, Type.f32) for source in sources]
        told = node.get_attributes()
        product = opset13.matmul(*wide, told["transpose_a"], told["transpose_b"])
        sums = opset13.convert(product, Type.i32)
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(sums.output(0))
    model.validate_nodes_and_infer_types()


def _ordered(ports: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """The ports that have these names, in their order."""
    found = []
    for name in names:
        port = next((port for port in ports if name in port.names), None)
        if port is None:
            raise ValueError(f"OpenVINO has left out the tensor {name!r}")
        found.append(port)
    return found


def _cause(error: Exception, forward: Forward) -> str:
    """The text of OpenVINO's error, with the layers of the ops that it names."""
    named = _UNKNOWN_OPS.search(str(error))
    if named is None:
        return f"OpenVINO can't convert it: {error_line(error)}"
    ops = [op.strip() for op in named[1].split(",")]
    return unknown_ops(OpenVINO.title, ops, forward)


def _resized(model: Any, sizes: list[tuple[int, ...]]) -> Any:
    """A copy for inputs of these shapes alone."""
    copy = model.clone()
    copy.reshape({port: list(size) for port, size in zip(copy.inputs, sizes, strict=True)})
    return copy


def _has_open_batch(model: Any) -> bool:
    shapes = [port.get_partial_shape() for port in model.outputs]
    return all(len(shape) and shape[0].is_dynamic for shape in shapes)
