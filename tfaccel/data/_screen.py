"""Looks at a dataset's elements as they pass, and leaves faulty ones out where asked."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.data._components import Component, Role, components, rule_for
from tfaccel.data._looking import Log
from tfaccel.data._values import examine
from tfaccel.data.findings import Fault, FaultKind
from tfaccel.data.rules import Rules, dtype_name
from tfaccel.system import notices


class Screen:
    """A stage of a pipeline that lets good samples pass.

    A few operations in the graph tell whether a batch may have a fault. Only then does
    Python look for it, by the same code as `check`.

    Args:
        rules: what samples must be like.
        log: collects the faults, once for each place in the data.
        drop: whether faulty samples are left out.
        batched: whether elements are batches.

    Raises:
        ValueError: a sample of this kind can't be left out.
    """

    def __init__(self, rules: Rules, log: Log, *, drop: bool, batched: bool):
        self._rules, self._log, self._drop, self._batched = rules, log, drop, batched
        with tf.device("CPU:0"):
            self._seen = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._told = 1

    @property
    def samples(self) -> int:
        """How many samples have passed, in the longest pass so far."""
        return int(self._seen.numpy())

    def applied(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """The dataset, followed by this stage."""
        spec = dataset.element_spec
        self._check_spec(spec)
        zero = tf.constant(0, tf.int64)
        # Each `if` in these functions is Python's, decided while they are traced.
        as_it_is = tf.autograph.experimental.do_not_convert
        marked = dataset.scan((zero, zero), as_it_is(self._count))
        looked = marked.map(as_it_is(self._look))
        if self._drop:
            looked = looked.filter(lambda bad, _: tf.logical_not(tf.reduce_all(bad)))
        return looked.map(as_it_is(self._without))

    def _check_spec(self, spec: Any) -> None:
        for part in components(spec):
            if not isinstance(part.value, tf.TensorSpec):
                kind = type(part.value).__name__.removesuffix("Spec")
                if self._drop:
                    raise ValueError(
                        '`validate="drop"` needs dense tensors: a '
                        f"{kind} ({part.name}) can't be cut into samples"
                    )
                self._log.not_looked_at(f"{part.name}, a {kind}")
                continue
            rule = rule_for(self._rules.dtype, part) if part.role is Role.INPUT else None
            if rule is not None and dtype_name(rule) != part.value.dtype.name:
                reason = f"dtype {part.value.dtype.name} where {dtype_name(rule)} is asked for"
                self._log.add(Fault(FaultKind.DTYPE, reason, part.name))

    def _count(self, state: Any, element: Any) -> Any:
        start, number = state
        end = start + self._rows(element)
        self._seen.assign(tf.maximum(self._seen, end))
        return (end, number + 1), (start, number, element)

    def _rows(self, element: Any) -> tf.Tensor:
        if not self._batched:
            return tf.constant(1, tf.int64)
        dense = [p.value for p in components(element) if isinstance(p.value, tf.Tensor)]
        return tf.shape(dense[0], tf.int64)[0] if dense else tf.constant(0, tf.int64)

    def _look(self, start: tf.Tensor, number: tf.Tensor, element: Any) -> Any:
        parts = [part for part in components(element) if isinstance(part.value, tf.Tensor)]
        count = self._rows(element)
        suspect = tf.reduce_any([count == 0, *(self._is_suspect(p, count) for p in parts)])

        def named(*values: Any) -> np.ndarray:
            return self._record(parts, int(values[0]), int(values[1]), values[2:])

        bad = tf.cond(
            suspect,
            lambda: tf.numpy_function(named, [start, number, *(p.value for p in parts)], tf.bool),
            lambda: tf.zeros([count], tf.bool),
        )
        bad.set_shape([None])
        return bad, element

    def _is_suspect(self, part: Component, count: tf.Tensor) -> tf.Tensor:
        """Whether a part may have a fault: never False where it has one."""
        value = part.value if self._batched else tf.expand_dims(part.value, 0)
        shape = tf.shape(value, tf.int64)
        doubts = [tf.reduce_any(shape == 0), shape[0] != count]
        if part.role is Role.INPUT and (rule := rule_for(self._rules.shape, part)) is not None:
            known = len(rule) == value.shape.rank - 1
            doubts += [tf.constant(not known)]
            sizes = [(i, size) for i, size in enumerate(rule, 1) if size is not None and known]
            doubts += [shape[i] != size for i, size in sizes]
        if not (value.dtype.is_floating or value.dtype.is_integer):
            return tf.reduce_any(doubts)
        numbers = tf.cast(value, tf.float64 if value.dtype.size > 4 else tf.float32)
        # A NaN is within no bounds.
        low, high = self._ends(part)
        inside = tf.math.is_finite(numbers) & (numbers >= low) & (numbers <= high)
        if high < np.inf and part.role is Role.LABEL and not self._is_one_hot(part):
            inside &= tf.floor(numbers) == numbers
        return tf.reduce_any([*doubts, tf.logical_not(tf.reduce_all(inside))])

    def _ends(self, part: Component) -> tuple[float, float]:
        if part.role is Role.WEIGHT:
            return 0.0, np.inf
        if part.role is Role.LABEL:
            classes = rule_for(self._rules.classes, part)
            top = np.inf if classes is None else 1.0 if self._is_one_hot(part) else classes - 1.0
            return (-np.inf if classes is None else 0.0), top
        return rule_for(self._rules.value_range, part) or (-np.inf, np.inf)

    def _is_one_hot(self, part: Component) -> bool:
        shape, classes = part.value.shape, rule_for(self._rules.classes, part)
        return bool(shape.rank) and shape[-1] == classes != 1 and shape.rank > self._batched

    def _record(
        self, parts: list[Component], start: int, number: int, values: tuple[Any, ...]
    ) -> np.ndarray:
        """Whether each row has a fault, `(rows,)`, by the same code as `check`."""
        try:
            return self._recorded(parts, start, number, values)
        except Exception as error:  # it must not end the training
            self._log.not_looked_at(f"sample {start} and others, as looking raised {error!r}")
            return np.zeros(len(values[0]) if self._batched and values else 1, bool)

    def _recorded(
        self, parts: list[Component], start: int, number: int, values: tuple[Any, ...]
    ) -> np.ndarray:
        arrays = [np.asarray(value) for value in values]
        arrays = arrays if self._batched else [array[None] for array in arrays]
        named = [Component(p.name, p.key, p.role, a) for p, a in zip(parts, arrays, strict=True)]
        # Every epoch meets the same places; they are logged in the first.
        log = self._log if self._log.first_time(("screen", start, number)) else Log("again")
        indices = range(start, start + len(arrays[0]))
        bad = examine(
            named, self._rules, log, indices=indices, number=number if self._batched else None
        )
        mask = np.zeros(len(arrays[0]), bool)
        mask[[row for row in bad if row < len(mask)]] = True
        if len({len(array) for array in arrays}) > 1:
            mask[:] = True  # nobody knows which label belongs to which input
        if self._drop:
            log.count(dropped=int(mask.sum()))
        self._tell()
        return mask

    def _tell(self) -> None:
        findings = self._log.findings()
        count = sum(findings.counts.values())
        if count >= self._told:
            self._told = 10 * count
            last = findings.faults[-1]
            done = "left out" if self._drop else "passed on"
            notices.warn(
                f"tfaccel.data: {count} fault{'s' * (count > 1)} so far, {done}; the last: "
                f"{last.where}: {last.reason}. `.findings` has all.",
                stacklevel=2,
            )

    def _without(self, bad: tf.Tensor, element: Any) -> Any:
        if not self._drop or not self._batched:
            return element
        good = tf.logical_not(bad)
        return tf.nest.map_structure(lambda value: tf.boolean_mask(value, good), element)
