"""Optimizer updates by one operation a variable."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfaccel.compat.patching import instance_attributes
from tfaccel.compat.tensorflow_private import traced_for_xla
from tfaccel.core.plan import Pass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.core.workload import Workload
from tfaccel.passes.optimizer._sparse_updates import Rows, sparse_rule_of
from tfaccel.passes.optimizer._updates import (
    Update,
    needs_scratch,
    rule_of,
    xla_lacks,
)

# In 16 bits the ops compute 1 - beta from a rounded beta: 1 - 0.999 would be 0.
_DTYPES = (tf.float32, tf.float64)
# The share of what is trained that makes a model one of embedding tables.
_MOST = 0.5
_HAVE_ONE = "SGD, Adam, AdamW, Adamax, RMSprop and Adadelta have one"


@dataclasses.dataclass(frozen=True)
class FusedOptimizer(Pass):
    """Updates each variable by one op in place of about ten.

    Serves SGD (with momentum and Nesterov), Adam (with AMSGrad), AdamW, Adamax,
    RMSprop (centred or not) and Adadelta, alone or inside a LossScaleOptimizer
    or MultiOptimizer. Slots and iterations stay the optimizer's own, and what
    Keras does around `update_step` (weight decay, clipping, averages,
    accumulation, schedules, constraints) is not touched.

    Weights are updated by Keras's maths to rounding. Slots that average are off by the
    rounding of a hyperparameter: the ops subtract beta from 1 in float32, where Keras
    subtracts in float64, so Adam's velocity is 1.3e-5 (relative) larger. Learning rate and
    epsilon make up for it. Where Keras's own steps filled the slots before, updates are up
    to 6e-6 off till the average has forgotten them.

    By a sparse gradient (Embedding), Adam, AdamW and SGD with momentum update their table by one
    op, and then the rows of the slices, in place, where Keras goes over the whole table some thirty
    times; Adagrad changes those rows alone. Keras squares the slices before it adds repeated ones,
    and so do these. Sparse gradients of other optimizers, those on a GPU, under XLA and under a
    strategy, and 16-bit variables keep Keras's own update. Adagrad's op for dense gradients has
    its epsilon in another place, Ftrl's makes zeros of weights whose gradients are NaN, and other
    optimizers have no op.

    Source: Kingma and Ba, arXiv:1412.6980; Reddi et al., arXiv:1904.09237; Zeiler,
    arXiv:1212.5701;
    https://www.tensorflow.org/api_docs/python/tf/raw_ops/ResourceApplyAdam
    """

    name: ClassVar[str] = "fused_optimizer"
    serves_validation: ClassVar[bool] = False

    def unsupported(self, workload: Workload) -> Unsupported | None:
        optimizers = list(_working(workload.optimizers))
        if not optimizers:
            return Unsupported("the model has no optimizer", "compile it with one")
        dtypes = {v.dtype for v in workload.model.trainable_variables}
        if dtypes and not any(tf.as_dtype(dtype) in _DTYPES for dtype in dtypes):
            return Refusal.DTYPE(
                f"all weights are {' or '.join(sorted(dtypes))}", "keep them in float32"
            )
        obstacles = [obstacle for _, obstacle in self.optimizers(workload)]
        return obstacles[0] if all(obstacles) else None

    def optimizers(
        self, workload: Workload
    ) -> Iterator[tuple[keras.optimizers.Optimizer, Unsupported | None]]:
        """Every optimizer that does the work, with what keeps its own update; None where fused."""
        for optimizer in _working(workload.optimizers):
            yield optimizer, _obstacle(optimizer, workload)

    def prior(self, workload: Workload) -> Prior:
        if _tables_share(workload) > _MOST and _sparse_obstacle(workload) is None:
            return Prior(
                gain=2.0,
                reason="Keras 3 goes over a whole embedding table some thirty times a step",
            )
        return Prior(
            gain=1.08, reason="Keras 3 updates each variable by about ten ops; fused it is one"
        )

    def applied(self, context: StepContext) -> contextlib.AbstractContextManager[None]:
        workload, scratch = context.workload, context.scratch.setdefault(self.name, {})
        served = [o for o, obstacle in self.optimizers(workload) if obstacle is None]
        fused = {optimizer: _Fused(optimizer, workload, scratch) for optimizer in served}
        return instance_attributes(
            (optimizer, method, getattr(fused[optimizer], method))
            for optimizer in served
            for method in ("apply", "update_step")
        )


def _working(optimizers: Sequence[Any]) -> Iterator[Any]:
    """The optimizers that do the work: those inside the ones that only hand on."""
    multi = getattr(keras.optimizers, "MultiOptimizer", ())
    for optimizer in optimizers:
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            yield from _working([optimizer.inner_optimizer])
        elif isinstance(optimizer, multi):
            yield from _working(optimizer.optimizers)
        else:
            yield optimizer


def _obstacle(optimizer: Any, workload: Workload) -> Unsupported | None:
    if rule_of(optimizer) is None:
        if sparse_rule_of(optimizer) is None or not _tables(workload):
            return Unsupported(
                f"no fused op has the maths of {type(optimizer).__name__}", _HAVE_ONE
            )
        return _sparse_obstacle(workload)
    if workload.model.jit_compile and xla_lacks(optimizer):
        return Unsupported("XLA lacks the op for Adam(amsgrad=True)", "compile without jit_compile")
    return None


def _sparse_obstacle(workload: Workload) -> Unsupported | None:
    """What keeps Keras's updates by sparse gradients."""
    if workload.device.kind != "CPU":
        return Refusal.DEVICE("rows are changed in place on a CPU alone")
    if workload.model.jit_compile:
        return Refusal.NO_USE("XLA makes one loop of Keras's update of a table already")
    return None


def _tables(workload: Workload) -> list[Any]:
    """The weights whose gradients are likely to be sparse."""
    embeddings = [one for one in workload.layers if isinstance(one, keras.layers.Embedding)]
    return [weight for layer in embeddings for weight in layer.trainable_weights]


def _tables_share(workload: Workload) -> float:
    """How much of all that is trained is in such tables."""
    total = sum(math.prod(one.shape) for one in workload.model.trainable_variables)
    return sum(math.prod(one.shape) for one in _tables(workload)) / max(total, 1)


class _Fused:
    def __init__(self, optimizer: Any, workload: Workload, scratch: dict[Any, tf.Variable]):
        self._optimizer = optimizer
        self._rule = rule_of(optimizer)
        self._sparse_rule = (
            sparse_rule_of(optimizer) if _sparse_obstacle(workload) is None else None
        )
        self._own_apply = optimizer.apply
        self._own_update_step = optimizer.update_step
        self._scalars: dict[Any, Any] = {}
        self._scratch = scratch

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        # Within one `apply` all variables are at the same iteration.
        self._scalars.clear()
        return self._own_apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        def update(gradient: Any) -> Update:
            return Update(
                self._optimizer, variable, gradient, learning_rate, self._scalars, self._scratch
            )

        serves = isinstance(variable, tf.Variable) and variable.dtype in _DTYPES
        if serves and self._rule is not None and self._serves_dense(gradient):
            self._rule(update(keras.ops.cast(gradient, variable.dtype)))
        elif serves and self._sparse_rule is not None and self._serves_sparse(gradient):
            values = keras.ops.cast(gradient.values, variable.dtype)
            self._sparse_rule(update(None), Rows(values, gradient.indices))
        else:
            self._own_update_step(gradient, variable, learning_rate)

    def _serves_dense(self, gradient: Any) -> bool:
        # A strategy would want scratch for each of its replicas.
        has_room = not tf.distribute.has_strategy() or not needs_scratch(self._optimizer)
        # Another pass, or a loop of the user's, may have the step compiled.
        lacks_op = xla_lacks(self._optimizer) and traced_for_xla()
        return isinstance(gradient, tf.Tensor) and has_room and not lacks_op

    def _serves_sparse(self, gradient: Any) -> bool:
        alone = not tf.distribute.has_strategy() and not traced_for_xla()
        return isinstance(gradient, tf.IndexedSlices) and alone
