"""What Keras's optimizers do by the slices of a sparse gradient (Embedding).

Averages decay in every row of a table, so the rules begin with the update of a whole table whose
gradient is zero, which is one op, and then do to the rows of the slices what is left. Where Keras
squares a gradient it squares slices, and repeated ones add up afterwards; so do these.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.passes.optimizer._updates import MATHS, Rule, Update, adam, sgd


@dataclasses.dataclass(frozen=True)
class Rows:
    """The slices of a sparse gradient, in the variable's dtype.

    TensorFlow's ops that change rows of a variable (`ResourceScatterAdd` and its kin) are for those
    variables alone that Keras itself changes so: from then on TensorFlow copies a variable
    whenever it is read or changed as a whole, in steps without a plan, too. `InplaceAdd` and
    `InplaceUpdate` change the tensor that they are given, and nobody else has a variable's tensor
    right after the variable was changed as a whole: if somebody had, it was changed as a copy.
    """

    values: tf.Tensor
    indices: tf.Tensor

    def of(self, variable: tf.Variable) -> tf.Tensor:
        """The variable's rows, one a slice."""
        return tf.gather(variable.read_value(), self.indices)

    def add(self, variable: tf.Variable, values: tf.Tensor) -> None:
        """Adds to the rows of a variable that was just changed as a whole; repeated ones add up."""
        self._change(tf.raw_ops.InplaceAdd, variable, values)

    def replace(self, variable: tf.Variable, values: tf.Tensor) -> None:
        """Replaces the rows of such a variable; repeated ones have the same value."""
        self._change(tf.raw_ops.InplaceUpdate, variable, values)

    def _change(self, op: Callable[..., tf.Tensor], variable: tf.Variable, values: Any) -> None:
        rows = tf.cast(self.indices, tf.int32)
        changed = op(x=variable.read_value(), i=rows, v=values)
        # Its own tensor: nothing is copied, and whoever reads the variable waits for it.
        variable.assign(changed, read_value=False)


SparseRule = Callable[[Update, Rows], None]


def _decay(rule: Rule, update: Update) -> None:
    """The update of the whole variable where the gradient is zero."""
    rule(dataclasses.replace(update, gradient=update.zeros()))


def _momentum(update: Update, rows: Rows) -> None:
    optimizer = update.optimizer
    _decay(sgd, update)
    change = -update.rate() * rows.values
    rows.add(update.slot_variable("momentums"), change)
    ahead = 1 + update.cast(optimizer.momentum) if optimizer.nesterov else 1
    rows.add(update.variable, ahead * change)


def _adam(update: Update, rows: Rows) -> None:
    optimizer = update.optimizer
    # As in the op of a whole variable, so that every row has one and the same maths.
    first, second = update.excess("beta_1"), update.excess("beta_2") ** 0.5
    corrected = tf.sqrt(1 - update.power("beta_2")) / (1 - update.power("beta_1"))
    rate = update.rate(second / first) * corrected
    before = rows.of(update.variable)
    largest = rows.of(update.slot_variable("_velocity_hats")) if optimizer.amsgrad else None
    _decay(adam, update)
    m, v = update.slot_variable("_momentums"), update.slot_variable("_velocities")
    rows.add(m, rows.values * (1 - update.exact(optimizer.beta_1)))
    rows.add(v, tf.square(rows.values) * (1 - update.exact(optimizer.beta_2)))
    square = rows.of(v)
    if largest is not None:
        square = tf.maximum(largest, square)
        rows.replace(update.slot_variable("_velocity_hats"), square)
    root = tf.sqrt(square) + update.exact(optimizer.epsilon * second)
    rows.replace(update.variable, before - rate * rows.of(m) / root)


def _adagrad(update: Update, rows: Rows) -> None:
    # As Keras does, without its search of the whole table for rows to divide by 0.
    accumulator = update.slot_variable("_accumulators")
    accumulator.scatter_add(tf.IndexedSlices(tf.square(rows.values), rows.indices))
    # By the variable itself, where a read as a whole would be a copy.
    squares = tf.gather(accumulator, rows.indices)
    root = tf.sqrt(squares + update.exact(update.optimizer.epsilon))
    change = update.rate() * rows.values / root
    update.variable.scatter_sub(tf.IndexedSlices(change, rows.indices))


_RULES: dict[type, SparseRule] = {
    keras.optimizers.SGD: _momentum,
    keras.optimizers.Adam: _adam,
    keras.optimizers.Adagrad: _adagrad,
}


def sparse_rule_of(optimizer: Any) -> SparseRule | None:
    """The rule with the maths of this optimizer's `update_step` for slices; None without one."""
    for base, rule in _RULES.items():
        if keras_private.overridden(optimizer, base, *MATHS) is None:
            return rule if _helps(optimizer) else None
    return None


def _helps(optimizer: Any) -> bool:
    if isinstance(optimizer, keras.optimizers.SGD):
        return bool(optimizer.momentum)  # without, Keras itself changes single rows
    if isinstance(optimizer, keras.optimizers.Adagrad):
        return bool(optimizer.epsilon > 0)  # else a row without a slice may become 0 / 0
    return True
