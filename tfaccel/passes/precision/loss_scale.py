"""Dynamic loss scaling that lives outside the user's optimizer."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat.collectives import true_on_all
from tfaccel.compat.patching import instance_attributes
from tfaccel.measure.finite import all_finite_in_graph

_INITIAL_SCALE = 2.0**15
GROWTH_STEPS = 2000


class LossScale:
    """A loss scale and the count of good steps since it last changed.

    Made outside any `tf.function`, which may not create variables when it is traced again. Each
    replica has its own, and all the same: they skip a step together where gradients overflow on
    one of them.

    Args:
        strategy: of the model; None without one.

    Source: Micikevicius et al., arXiv:1710.03740, section 3.2;
    keras.optimizers.LossScaleOptimizer has the same constants.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None) -> None:
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            self.value = _variable(_INITIAL_SCALE, tf.float32, "loss_scale")
            self.good_steps = _variable(0, tf.int64, "good_steps")

    def applied(
        self, optimizers: Sequence[keras.optimizers.Optimizer]
    ) -> contextlib.AbstractContextManager[None]:
        """A block in which optimizers scale their losses and unscale their gradients."""
        return instance_attributes(patch for one in optimizers for patch in self._patches(one))

    def _patches(self, optimizer: keras.optimizers.Optimizer) -> Iterator[tuple[Any, str, Any]]:
        scaled: list[bool] = []
        yield optimizer, "scale_loss", self._scale_loss(optimizer, scaled)
        yield optimizer, "apply", self._apply(optimizer, scaled)

    def _scale_loss(
        self, optimizer: keras.optimizers.Optimizer, scaled: list[bool]
    ) -> Callable[[Any], Any]:
        original = optimizer.scale_loss

        def scale_loss(loss: Any) -> Any:
            scaled.append(True)
            return original(loss) * tf.cast(self.value, loss.dtype)

        return scale_loss

    def _apply(
        self, optimizer: keras.optimizers.Optimizer, scaled: list[bool]
    ) -> Callable[..., None]:
        original = optimizer.apply

        def apply(grads: Sequence[Any], trainable_variables: Any = None) -> None:
            if not scaled:
                raise ValueError(
                    f"train_step applies {optimizer.name!r} without optimizer.scale_loss(loss), "
                    "so float16 gradients would underflow"
                )
            grads = [g if g is None else _divided(g, self.value) for g in grads]
            finite = true_on_all(all_finite_in_graph([g for g in grads if g is not None]))

            def good(*grads: Any) -> tf.Tensor:
                return self._good_step(lambda: original(grads, trainable_variables))

            _on_condition(finite, good, self._bad_step, grads)

        return apply

    def _good_step(self, apply: Callable[[], None]) -> tf.Tensor:
        apply()
        grown = tf.equal(self.good_steps, GROWTH_STEPS - 1)
        self.value.assign(tf.where(grown, self.value * 2, self.value))
        self.good_steps.assign(tf.where(grown, tf.zeros_like(self.good_steps), self.good_steps + 1))
        return tf.constant(True)

    def _bad_step(self) -> tf.Tensor:
        self.value.assign(tf.maximum(self.value / 2, 1.0))
        self.good_steps.assign(0)
        return tf.constant(False)


def _on_condition(
    flag: tf.Tensor,
    then: Callable[..., tf.Tensor],
    otherwise: Callable[[], tf.Tensor],
    args: Sequence[Any],
) -> None:
    """Calls one of two functions of each replica; the flag is the same on all.

    In a branch of a condition of its own a replica can't hand gradients to the others. So they
    leave for a condition that all stand in, as those of `keras.optimizers.LossScaleOptimizer` do.
    """
    if not tf.distribute.has_strategy():
        tf.cond(flag, lambda: then(*args), otherwise)
        return

    def across(strategy: Any, flags: Any, *args: Any) -> None:
        def of_each(function: Callable[..., Any], *args: Any) -> tf.Tensor:
            strategy.extended.call_for_each_replica(function, args=args)
            return tf.constant(True)

        flag = strategy.experimental_local_results(flags)[0]
        tf.cond(flag, lambda: of_each(then, *args), lambda: of_each(otherwise))

    tf.distribute.get_replica_context().merge_call(across, args=(flag, *args))


def _variable(value: float, dtype: tf.DType, name: str) -> tf.Variable:
    """One that each replica reads and assigns by itself."""
    return tf.Variable(
        value,
        trainable=False,
        dtype=dtype,
        name=name,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def _divided(gradient: Any, scale: tf.Variable) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values / tf.cast(scale, gradient.values.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return gradient / tf.cast(scale, gradient.dtype)


def loss_scale_of(model: keras.Model, scratch: dict[str, Any]) -> float | None:
    """The loss scale that a training uses; None where losses are not scaled.

    Args:
        model: its optimizer may be a `keras.optimizers.LossScaleOptimizer`.
        scratch: of a built step, where a pass keeps a scale of its own.
    """
    for kept in scratch.values():
        if isinstance(kept, LossScale):
            return float(kept.value.numpy())
    scale = getattr(getattr(model, "optimizer", None), "dynamic_scale", None)
    return None if scale is None else float(keras.ops.convert_to_numpy(scale))
