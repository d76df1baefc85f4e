"""LSTM and GRU layers by loops over time that XLA compiles."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfaccel.core.layer_note import LayerNote, Runs
from tfaccel.core.layer_pass import LayerPass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.core.workload import Workload, batch_size, varies
from tfaccel.passes.recurrent import _layers

# A part of a batch has no fewer samples than a vector register has float32 numbers: 8 (AVX).
_LEAST_ROWS = 8
# Keras's default batch size: https://keras.io/api/models/model_training_apis/
_USUAL_BATCH = 32


@dataclasses.dataclass(frozen=True)
class FusedRNN(LayerPass):
    """Runs LSTM and GRU layers on a CPU by loops that XLA compiles.

    Keras 3 runs a time step on a CPU as some twenty small ops, and its gradient as forty.
    Here all inputs meet the input weights in one product, and what has to be a loop over
    time is two ops: one forward, one for the gradient, each compiled by XLA; weight
    gradients are one product each behind it. Each core has such loops for a part of the
    batch. The maths is Keras's to rounding; with 16-bit layers the loop is in float32. On a
    GPU Keras has cuDNN's kernels, and the pass refuses.

    Served are `LSTM`, `GRU`, `Bidirectional` of them, and `RNN` around an `LSTMCell` or
    `GRUCell`, with masks, initial and returned states, `stateful`, `go_backwards` and
    dropout. A layer keeps its own loop where the maths is another: activations other than
    tanh and sigmoid, `recurrent_dropout`, float64, a `call` or `inner_loop` of the user's;
    and in a call whose number of time steps is not known while it is traced.

    Source: Appleyard et al., Optimizing Performance of Recurrent Neural Networks on GPUs,
    https://arxiv.org/abs/1604.01946 (one product for all inputs, fused elementwise work);
    https://openxla.org/xla/tf2xla/tutorials/jit_compile
    """

    name: ClassVar[str] = "fused_rnn"
    no_layer: ClassVar[str] = "the model has no recurrent layer"
    kinds: ClassVar[tuple[type, ...]] = (keras.layers.RNN,)
    compile_factor: ClassVar[float] = 1.5

    def unsupported(self, workload: Workload) -> Unsupported | None:
        if workload.device.kind == "GPU":
            return Refusal.NO_USE("on a GPU Keras runs recurrent layers by cuDNN")
        return super().unsupported(workload)

    def unsupported_step(self, workload: Workload) -> Unsupported | None:
        if workload.num_replicas > 1:
            return Refusal.REPLICAS("XLA can't compile a part of a step that several replicas run")
        if any(varies(spec) for spec in tf.nest.flatten(workload.element_spec)):
            return Refusal.SIZES(
                "the dataset does not say how long sequences are, and XLA compiles each anew",
                "pad them to one length, and say it with `tf.ensure_shape` in a `map`, as for "
                "`keras.utils.timeseries_dataset_from_array`",
            )
        if workload.sizes_vary:
            return Refusal.SIZES(
                "batches come in many sizes, and XLA compiles the loops anew for each",
                "make batches of one size, such as by `batch(size, drop_remainder=True)`",
            )
        return None

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=workload.device.kind == "CPU" and workload.has(keras.layers.RNN),
            gain=1.7,
            reason="on a CPU Keras runs each time step of an LSTM as some twenty ops; compiled by "
            "XLA the whole loop is one",
        )

    def describe(self, layer: Any, runs: Runs, workload: Workload) -> LayerNote:
        return LayerNote(runs.replaced(op="a loop that XLA compiles"))

    def compiles_sizes(self, workload: Workload) -> bool:
        return True

    def obstacle(self, layer: Any, workload: Workload) -> Unsupported | None:
        return _layers.obstacle(layer)

    def patches(self, layer: Any, context: StepContext) -> Iterator[tuple[str, Any]]:
        yield _layers.compiled_loop(layer, _parts(context.workload))


def _parts(workload: Workload) -> int:
    """How many loops run side by side, each over a part of the batch.

    XLA runs all of a step but the product in one thread, and the product of one step is too
    small for several.
    """
    rows = batch_size(workload.batches[0]) if workload.batches else _USUAL_BATCH
    return max(1, min(workload.device.cores, rows // _LEAST_ROWS))
