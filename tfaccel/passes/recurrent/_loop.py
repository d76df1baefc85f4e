"""A cell repeated over time: two loops that XLA compiles, and derivatives of every order.

TensorFlow runs some twenty small ops a time step, and as many for the gradient, each
started by its executor. Compiled by XLA a loop is one op, and all elementwise work of a
step is one pass through memory. The gradient is written by hand, so it is such a loop as
well; the gradients of weights are one product behind it.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.core.compiled_sizes import note
from tfaccel.core.derivatives import with_gradient
from tfaccel.passes.recurrent._cells import Cell, Tensors


def run(
    cell: Cell, z: tf.Tensor, weights: Tensors, states: Tensors, mask: tf.Tensor | None
) -> tuple[tf.Tensor, Tensors]:
    """Runs a cell over all time steps.

    There are gradients of every order. The first is by XLA; higher ones are TensorFlow's own,
    through a loop of its ops.

    Args:
        cell: what is repeated.
        z: inputs behind the input weights, `(steps, batch, gates * units)`, the steps known.
        weights: of the cell. All numbers are float32.
        states: before the first step, each `(batch, units)`.
        mask: `(steps, batch, 1)`, bool; where it is False a step leaves the states alone.

    Returns:
        The first state after each step, `(steps, batch, units)`, and all states after the last.
    """
    note(z)
    sequences: Tensors = ()
    saved: Tensors = ()

    def value() -> Tensors:
        nonlocal sequences, saved
        sequences, saved = _compiled(_record, cell)(z, weights, states, mask)
        for sequence, state in zip(sequences, states, strict=True):
            # A function that was traced for any number of samples forgets a known one.
            sequence.set_shape([None, *state.shape])
        return _results(sequences)

    def gradient(*upstream: tf.Tensor) -> Tensors:
        """Those of `z`, of the weights and of the states before the first step."""
        before = tuple(sequence[:-1] for sequence in sequences)
        dz, d_states = _compiled(_back, cell)(upstream, saved, before, weights, mask)
        return dz, *cell.weight_gradients(dz, saved, before[0]), *d_states

    def plain(z: tf.Tensor, *rest: tf.Tensor) -> Tensors:
        count = len(weights)
        return _results(_record(cell, z, rest[:count], rest[count:], mask)[0])

    output, *last = with_gradient((z, *weights, *states), value, gradient, plain)
    return output, tuple(last)


def _results(sequences: Tensors) -> Tensors:
    """What `run` returns, of the states before the first step and after each."""
    return (sequences[0][1:], *(sequence[-1] for sequence in sequences))


@functools.cache
def _compiled(loop: Callable[..., Any], cell: Cell) -> Callable[..., Any]:
    """The loop for this cell, by XLA. One for all layers: XLA compiles a shape once."""

    @tf.function(jit_compile=True, autograph=False)
    def compiled(*args: Any) -> Any:
        return loop(cell, *args)

    # A tape that sees the inputs would make TensorFlow prepare a gradient of the loop, which
    # keeps more tensors, among them some that XLA can't hand over.
    return lambda *args: compiled(*tf.nest.map_structure(_constant, args))


def _constant(tensor: tf.Tensor | None) -> tf.Tensor | None:
    return None if tensor is None else tf.stop_gradient(tensor)


def _record(
    cell: Cell, z: tf.Tensor, weights: Tensors, states: Tensors, mask: tf.Tensor | None
) -> tuple[Tensors, Tensors]:
    """The states before each step and after the last, and what each step has to save."""
    steps = z.shape[0]
    z_at, mask_at = _reader(z), _reader(mask)

    def step(t: tf.Tensor, states: Tensors) -> tuple[Tensors, Tensors]:
        new, saved = cell.step(z_at(t), states, weights)
        return _carried(mask_at(t), new, states), saved

    def body(t: tf.Tensor, states: Tensors, sequences: Any, notes: Any) -> Any:
        """From the states before step `t`, `(batch, units)`, to those after it."""
        states, saved = step(t, states)
        return t + 1, states, _write(sequences, t + 1, states), _write(notes, t, saved)

    saves = len(step(tf.constant(0), states)[1])
    sequences = _write(_arrays(len(states), steps + 1, states[0].shape), 0, states)
    notes = _arrays(saves, steps, states[0].shape)
    _, _, sequences, notes = _loop(body, steps, (0, states, sequences, notes))
    return _stack(sequences), _stack(notes)


def _back(
    cell: Cell,
    upstream: Tensors,
    saved: Tensors,
    before: Tensors,
    weights: Tensors,
    mask: tf.Tensor | None,
) -> tuple[tf.Tensor, Tensors]:
    """The gradients of `z` and of the states before the first step."""
    steps = upstream[0].shape[0]
    upstream_at, mask_at = _reader(upstream[0]), _reader(mask)
    saved_at, before_at = [_reader(x) for x in saved], [_reader(x) for x in before]

    def body(t: tf.Tensor, gradients: Tensors, dz: Any) -> Any:
        """From the states' gradients after step `t`, `(batch, units)`, to those before it."""
        gradients = (gradients[0] + upstream_at(t), *gradients[1:])
        seen, passed = _split(mask_at(t), gradients)
        states, notes = tuple(at(t) for at in before_at), tuple(at(t) for at in saved_at)
        dz_t, new = cell.step_back(seen, notes, states, weights)
        return t - 1, _add(new, passed), _write(dz, t, (dz_t,))

    dz = _arrays(1, steps, tf.TensorShape([None, cell.gates * upstream[0].shape[-1]]))
    _, gradients, dz = _loop(body, steps, (steps - 1, tuple(upstream[1:]), dz))
    return _stack(dz)[0], gradients


def _loop(body: Callable[..., Any], steps: int, variables: Any) -> Any:
    """The body `steps` times; its first variable is the time, which it keeps itself."""
    return tf.while_loop(
        lambda t, *_: tf.logical_and(t >= 0, t < steps), body, variables, maximum_iterations=steps
    )


def _reader(sequence: tf.Tensor | None) -> Callable[[tf.Tensor], Any]:
    if sequence is None:
        return lambda t: None
    array = tf.TensorArray(sequence.dtype, size=sequence.shape[0], clear_after_read=False)
    return array.unstack(sequence).read


def _arrays(count: int, size: int, shape: tf.TensorShape) -> tuple[tf.TensorArray, ...]:
    return tuple(tf.TensorArray(tf.float32, size, element_shape=shape) for _ in range(count))


def _write(arrays: Any, t: Any, values: Tensors) -> tuple[tf.TensorArray, ...]:
    return tuple(array.write(t, value) for array, value in zip(arrays, values, strict=True))


def _stack(arrays: Any) -> Tensors:
    return tuple(array.stack() for array in arrays)


def _carried(mask: tf.Tensor | None, new: Tensors, old: Tensors) -> Tensors:
    """The new states where the step counts, the old ones where it is masked."""
    if mask is None:
        return new
    return tuple(tf.where(mask, *pair) for pair in zip(new, old, strict=True))


def _split(mask: tf.Tensor | None, gradients: Tensors) -> tuple[Tensors, Tensors | None]:
    """The gradients that a step sees, and those that pass by it where it is masked."""
    if mask is None:
        return gradients, None
    seen = tuple(tf.where(mask, gradient, 0.0) for gradient in gradients)
    return seen, tuple(tf.where(mask, 0.0, gradient) for gradient in gradients)


def _add(new: Tensors, passed: Tensors | None) -> Tensors:
    return new if passed is None else tuple(a + b for a, b in zip(new, passed, strict=True))
