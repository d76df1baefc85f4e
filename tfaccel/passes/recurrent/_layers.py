"""Keras's recurrent layers with the loop of `_rnn_loop` in place of their own."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.unsupported import (
    FLOAT32_OR_LESS,
    Refusal,
    Unsupported,
    kind_of,
    named,
    own_method,
)
from tfaccel.passes.recurrent import _loop
from tfaccel.passes.recurrent._cells import GRU, LSTM, Cell, GRUResetBefore, Tensors

_TANH = (keras.activations.tanh, keras.ops.tanh, tf.tanh)
_SIGMOID = (keras.activations.sigmoid, keras.ops.sigmoid, tf.sigmoid)
_CELLS = (keras.layers.LSTMCell, keras.layers.GRUCell)
# The most derived first: an LSTM is an RNN, too.
_LAYERS = (keras.layers.LSTM, keras.layers.GRU, keras.layers.RNN)
# Reading large recurrent weights for each part costs more than loops side by side gain: on two
# cores of a Zen 3 two parts were 1.5 times as fast with 128 units, 1.1 times with 512 and slower
# with 768.
_MOST_UNITS_IN_PARTS = 512
_LSTM, _GRU, _GRU_RESET_BEFORE = LSTM(), GRU(), GRUResetBefore()


def obstacle(layer: Any) -> Unsupported | None:
    """Why this recurrent layer keeps Keras's own loop, as far as it is known before a call."""
    who, cell = named(layer), layer.cell
    kind = kind_of(cell, _CELLS)
    if kind is None:
        return Unsupported(f"{who} has a {type(cell).__name__}", "use an LSTM or a GRU")
    own = keras_private.overridden(cell, kind, "call", "get_dropout_mask")
    if own is not None:
        return Refusal.OWN_CODE(f"{who} has a cell with a `{own}` of its own")
    base = kind_of(layer, _LAYERS) or type(layer)
    return own_method(layer, base, "call", "inner_loop") or _other_maths(who, layer)


def _other_maths(who: str, layer: Any) -> Unsupported | None:
    """An argument of the layer that the loop does not serve, as a reason; None without one."""
    cell = layer.cell
    if cell.compute_dtype not in FLOAT32_OR_LESS:
        return Refusal.DTYPE(f"{who} computes in {cell.compute_dtype}", "use float32 or less")
    if getattr(layer, "use_cudnn", None) is True:
        return Unsupported(f"{who} has use_cudnn=True, which fails on a CPU", "leave it at 'auto'")
    others = {
        "an activation other than tanh": cell.activation not in _TANH,
        "a recurrent_activation other than sigmoid": cell.recurrent_activation not in _SIGMOID,
        f"recurrent_dropout={cell.recurrent_dropout}": bool(cell.recurrent_dropout),
        "a cell with an activity_regularizer": cell.activity_regularizer is not None,
    }
    return next((Unsupported(f"{who} has {what}") for what, is_so in others.items() if is_so), None)


def compiled_loop(layer: Any, parts: int) -> tuple[str, Callable[..., Any]]:
    """The name of the layer's loop over time, and one by XLA that may stand in for it.

    Keras's own code stays around the loop: initial states, `stateful`, dropout masks, outputs.
    A batch may be cut into `parts`, each with a loop of its own.
    """
    name, own = keras_private.recurrent_loop(layer)

    def inner_loop(sequences: Any, initial_state: Any, mask: Any, training: Any = False) -> Any:
        plain = mask[0] if isinstance(mask, list | tuple) else mask
        if not _serves(sequences, plain, training):
            return own(sequences, initial_state, mask=mask, training=training)
        count = parts if layer.cell.units <= _MOST_UNITS_IN_PARTS else 1
        return _inner_loop(layer, sequences, initial_state, plain, bool(training), count)

    return name, inner_loop


def _serves(sequences: Any, mask: Any, training: Any) -> bool:
    """Whether this very call can be served: XLA must know how many steps there are."""
    if not isinstance(sequences, tf.Tensor) or not isinstance(training, bool | None):
        return False
    known = sequences.shape.rank == 3 and all(sequences.shape[1:])
    return known and (mask is None or len(mask.shape) in (2, 3))


def _inner_loop(
    layer: Any, sequences: Any, states: Any, mask: Any, training: bool, parts: int
) -> Any:
    """What Keras's `inner_loop` returns: the last output, all outputs, the last states."""
    inputs = _inputs(layer.cell, sequences, training)
    arguments = (inputs, tf.nest.flatten(states), mask)
    # A stateful layer and the pass `kernels` need the number of samples where it is known.
    rows = tf.shape(sequences)[0] if sequences.shape[0] is None else sequences.shape[0]
    results = [_part(layer, *part) for part in _cut(arguments, rows, parts)]
    last, outputs, states = tf.nest.map_structure(lambda *x: tf.concat(x, axis=0), *results)
    return last, outputs, states


def _cut(arguments: Any, rows: tf.Tensor | int, parts: int) -> list[Any]:
    """The same structure of tensors for each part of the batch."""
    if parts == 1:
        return [arguments]
    ends = [rows * (part + 1) // parts for part in range(parts)]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    flat = tf.nest.flatten(arguments)
    cut = [[None] * parts if x is None else tf.split(x, sizes, axis=0, num=parts) for x in flat]
    return [tf.nest.pack_sequence_as(arguments, part) for part in zip(*cut, strict=True)]


def _part(layer: Any, inputs: list[tf.Tensor], states: list[Any], mask: Any) -> Any:
    """What `_inner_loop` returns, for some of the samples."""
    if mask is not None:
        mask = tf.cast(mask, tf.bool)
        mask = _in_order(layer, mask if mask.shape.rank == 3 else mask[..., None])
    cell = layer.cell
    z, repeated, weights = _projected(cell, [_in_order(layer, rows) for rows in inputs])
    outputs, last = _loop.run(repeated, z, weights, tuple(map(_float32, states)), mask)
    outputs = tf.cast(_as_put_out(layer, outputs, mask), cell.compute_dtype)
    states = [tf.cast(state, cell.compute_dtype) for state in last]
    return outputs[-1], tf.transpose(outputs, [1, 0, 2]), states


def _inputs(cell: Any, sequences: tf.Tensor, training: bool) -> list[tf.Tensor]:
    """The cell's inputs: one tensor, or (dropout, `implementation=1`) one for each gate."""
    x = tf.cast(sequences, cell.compute_dtype)
    if not (training and 0 < cell.dropout < 1):
        return [x]
    # RNN.call has drawn them: Keras's masks, the same for all time steps.
    masks = keras_private.dropout_masks(cell, sequences[:, 0, :])
    return [x * tf.cast(mask, x.dtype)[:, None, :] for mask in masks]


def _in_order(layer: Any, tensor: tf.Tensor) -> tf.Tensor:
    """Time first, and in the direction in which the layer goes."""
    steps_first = tf.transpose(tensor, [1, 0, 2])
    return tf.reverse(steps_first, [0]) if layer.go_backwards else steps_first


def _as_put_out(layer: Any, outputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Outputs as Keras masks them: a masked step gives zeros, or repeats the output before."""
    if mask is None:
        return outputs
    counts = tf.cast(mask, tf.int32)
    shown = mask if layer.zero_output_for_mask else tf.cumsum(counts, axis=0) > 0
    return tf.where(shown, outputs, tf.zeros([], outputs.dtype))


def _projected(cell: Any, inputs: list[tf.Tensor]) -> tuple[tf.Tensor, Cell, Tensors]:
    """The inputs of all steps behind the input weights, the cell to repeat, its weights."""
    recurrent = _float32(_value(cell, cell.recurrent_kernel))
    bias = _value(cell, cell.bias) if cell.use_bias else None
    if not getattr(cell, "reset_after", False):
        repeated = _LSTM if isinstance(cell, keras.layers.LSTMCell) else _GRU_RESET_BEFORE
        return _products(cell, inputs, bias), repeated, (recurrent,)
    if bias is None:
        return _products(cell, inputs, None), _GRU, (recurrent, tf.zeros([recurrent.shape[-1]]))
    return _products(cell, inputs, bias[0]), _GRU, (recurrent, _float32(bias[1]))


def _products(cell: Any, inputs: list[tf.Tensor], bias: tf.Tensor | None) -> tf.Tensor:
    """The input product of all steps and samples, plus the bias, `(steps, batch, ...)`.

    One product of two matrices, with BiasAdd right behind it: TensorFlow fuses the two.
    """
    kernels = tf.split(_value(cell, cell.kernel), len(inputs), axis=1)
    flat = [tf.reshape(rows, [-1, rows.shape[-1]]) for rows in inputs]
    parts = [tf.matmul(rows, kernel) for rows, kernel in zip(flat, kernels, strict=True)]
    z = parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)
    z = z if bias is None else tf.nn.bias_add(z, bias)
    return _float32(tf.reshape(z, [inputs[0].shape[0], -1, z.shape[-1]]))


def _value(cell: Any, variable: Any) -> tf.Tensor:
    return tf.cast(keras.ops.convert_to_tensor(variable), cell.compute_dtype)


def _float32(tensor: tf.Tensor) -> tf.Tensor:
    return tf.cast(tensor, tf.float32)
