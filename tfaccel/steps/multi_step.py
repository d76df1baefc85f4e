"""Several training steps in one call, and the logs of each."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfaccel.measure.finite import all_finite_in_graph
from tfaccel.steps.logs import judged


class MultiStep:
    """Runs up to some number of Keras's own steps in one call of one graph.

    That saves the time between steps: a call of a `tf.function` from Python, handing it the
    iterator and the variables, and handing the logs back. The steps are Keras's, one after the
    other, on batches that are taken from the iterator one by one, so no more than one is held.

    A call ends early where the data end, and after the first step whose loss turned non-finite, so
    that Keras's `TerminateOnNaN` and tfaccel's guard end a training in time.

    Keras's train function `step`, given a list of batches in place of an iterator, runs its step
    on the first. It counts `steps_per_execution` of them as one call: the logs of the last are
    handed out, and a group ends between calls only.

    Source: https://www.tensorflow.org/api_docs/python/tf/while_loop;
    `Model.compile(steps_per_execution=...)` is the same loop with the last logs only.
    """

    def __init__(self, step: Callable[[Any], Any], steps_per_execution: int = 1):
        self._step = step
        self._stride = steps_per_execution
        self._structure: Any = None
        self._finite: tf.Tensor | None = None  # which logs were finite at the end of the last call
        self._one = tf.function(self._one_step, reduce_retracing=True, autograph=False)
        self._loop = tf.function(self._traced, reduce_retracing=True, autograph=False)

    def experimental_get_tracing_count(self) -> int:
        """How often the group was traced, by the name that a `tf.function` has for it."""
        return int(self._loop.experimental_get_tracing_count())

    def __call__(self, iterator: tf.data.Iterator, most: int) -> list[Any]:
        """Runs the steps of up to `most` calls, at least 1, on batches of an iterator.

        Returns the logs of each call, in order; numbers as Python's, as callbacks see them.
        Raises StopIteration where there is no batch left, as Keras's own function does.
        """
        if self._finite is None:
            self._log_specs(iterator)
            self._finite = tf.fill([len(tf.nest.flatten(judged(self._structure)))], True)
        steps = tf.constant(most * self._stride)
        done, self._finite, columns = self._loop(iterator, steps, self._finite)
        count = int(done)
        if not count:
            raise StopIteration
        rows = [*range(self._stride - 1, count, self._stride)]
        if count % self._stride:
            rows.append(count - 1)  # the data ended within a call
        return self._rows(columns, rows)

    def _rows(self, columns: Sequence[tf.Tensor], rows: Sequence[int]) -> list[Any]:
        lists = [_values(column, rows) for column in columns]
        return [tf.nest.pack_sequence_as(self._structure, row) for row in zip(*lists, strict=True)]

    def _one_step(self, batch: Any) -> Any:
        return self._step([batch])

    def _traced(self, iterator: tf.data.Iterator, most: tf.Tensor, finite: tf.Tensor) -> Any:
        specs = self._log_specs(iterator)

        def body(done: tf.Tensor, going: tf.Tensor, finite: tf.Tensor, columns: Any) -> Any:
            batch = iterator.get_next_as_optional()

            def run() -> Any:
                logs = self._one(batch.get_value())
                written = tuple(
                    column.write(done, value)
                    for column, value in zip(columns, tf.nest.flatten(logs), strict=True)
                )
                ends_call = (done + 1) % self._stride == 0
                now = _are_finite(logs)
                stops = ends_call & tf.reduce_any(finite & ~now)
                finite_till = tf.where(ends_call, now, finite)
                return done + 1, (done + 1 < most) & ~stops, finite_till, written

            return tf.cond(
                batch.has_value(), run, lambda: (done, tf.constant(False), finite, columns)
            )

        done, _, finite, columns = tf.while_loop(
            lambda done, going, finite, columns: going,
            body,
            (tf.constant(0), tf.constant(True), finite, tuple(_column(s, most) for s in specs)),
            parallel_iterations=1,
        )
        return done, finite, [column.stack() for column in columns]

    def _log_specs(self, iterator: tf.data.Iterator) -> list[tf.TensorSpec]:
        """The specs of the step's logs, from a trace of it that the loop shares."""
        logs = self._one.get_concrete_function(iterator.element_spec).structured_outputs
        self._structure = tf.nest.map_structure(_spec, logs)
        return tf.nest.flatten(self._structure)


def _spec(log: Any) -> tf.TensorSpec:
    spec = tf.TensorSpec(log.shape, log.dtype) if tf.is_tensor(log) else log
    if not isinstance(spec, tf.TensorSpec) or not spec.shape.is_fully_defined():
        raise TypeError(f"to be kept for later, logs must be tensors of one shape, not {log}")
    return spec


def _column(spec: tf.TensorSpec, length: tf.Tensor) -> tf.TensorArray:
    return tf.TensorArray(spec.dtype, size=length, element_shape=spec.shape, clear_after_read=False)


def _values(column: tf.Tensor, rows: Sequence[int]) -> list[Any]:
    """One log's values at some steps."""
    is_number = column.shape.rank == 1 and (column.dtype.is_floating or column.dtype.is_integer)
    if not is_number:
        return [column[row] for row in rows]
    numbers = column.numpy().tolist()
    return [numbers[row] for row in rows]


def _are_finite(logs: Any) -> tf.Tensor:
    """Whether each log that a step is judged by is finite."""
    return tf.stack([all_finite_in_graph(value) for value in tf.nest.flatten(judged(logs))])
