"""What Keras's optimizers do to one variable, each as one operation of TensorFlow."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_private

# The methods that `update_step` consists of.
MATHS = ("update_step", "assign", "assign_add", "assign_sub")


@dataclasses.dataclass(frozen=True)
class Update:
    """One variable's update: what the rules below need for it, in its dtype."""

    optimizer: Any  # the Keras optimizer
    variable: tf.Variable  # the variable, of which the optimizer holds slots
    gradient: tf.Tensor  # its dense gradient, in the variable's dtype
    learning_rate: Any  # as Keras hands it to `update_step`
    scalars: dict[Any, Any]  # tensors that the updates of many variables share, of one `apply`
    # Slots that the ops want and Keras's optimizers lack, by variable.
    scratch: dict[Any, tf.Variable]

    def common(self) -> dict[str, Any]:
        """The arguments that all ops with slots share."""
        return {
            "var": self.variable.handle,
            "lr": self.rate(),
            "grad": self.gradient,
            "use_locking": True,
        }

    def slot(self, name: str) -> tf.Tensor:
        """The handle of this variable's slot in the optimizer's list `name`."""
        return self.slot_variable(name).handle

    def slot_variable(self, name: str) -> tf.Variable:
        """This variable's slot in the optimizer's list `name`."""
        index = keras_private.variable_index(self.optimizer, self.variable)
        return keras_private.slots(self.optimizer, name)[index].value

    def zeroed_scratch(self) -> tf.Tensor:
        """The handle of a slot that is zero when the op runs."""
        key = self.variable.ref()
        if key not in self.scratch:
            self.scratch[key] = _untraced(lambda: _zero_variable_like(self.variable))
        # Zeroed in every step, or one NaN would stay for ever (0 times NaN is NaN).
        zeros = tf.zeros(self.variable.shape, self.variable.dtype)
        self.scratch[key].assign(zeros, read_value=False)
        return self.scratch[key].handle

    def zeros(self) -> tf.Tensor:
        """Zeros of the variable's shape: a constant variable, which all of one shape share."""
        key = ("zeros", tuple(self.variable.shape), self.variable.dtype, self.variable.device)
        if key not in self.scratch:
            self.scratch[key] = _untraced(lambda: _zero_variable_like(self.variable))
        return self.scratch[key].read_value()

    def exact(self, value: Any) -> tf.Tensor:
        """A hyperparameter that Keras uses as the Python float that it is."""
        return keras.ops.convert_to_tensor(value, self.variable.dtype)

    def cast(self, value: Any) -> tf.Tensor:
        """A hyperparameter that Keras casts, which takes floats by way of float32."""
        return keras.ops.cast(value, self.variable.dtype)

    def excess(self, hyperparameter: str) -> float:
        """How many times too large `1 - beta` is in an op, and with it what the op averages.

        Ops subtract in the variable's dtype, and Keras in float64: `1 - 0.999` in float32
        is 1.3e-5 more. A difference of 1e-5, small as it is, can send a training another way
        (the losses of an MLP were 1.7 % off two epochs later), so the rules correct it.
        """
        exact = getattr(self.optimizer, hyperparameter)
        if not isinstance(exact, float) or not 0 <= exact < 1:
            return 1.0
        dtype = self.variable.dtype.as_numpy_dtype
        return float((dtype(1) - dtype(exact)) / dtype(1 - exact))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for variables of one kind in one graph.

        A branch of a condition is a graph, and its tensors mean nothing outside.
        """
        graph = tf.compat.v1.get_default_graph()
        key = (graph, self.variable.device, self.variable.dtype, key)
        if key not in self.scalars:
            self.scalars[key] = make()
        return self.scalars[key]

    def rate(self, factor: float = 1.0) -> tf.Tensor:
        """The learning rate, times a factor."""
        rate = self.learning_rate
        # With the object itself, so that its id is not given to another.
        made = self.once(("rate", id(rate), factor), lambda: (self.cast(rate) * factor, rate))
        return made[0]

    def power(self, beta: str) -> tf.Tensor:
        """The hyperparameter called `beta` to the power of the step, from 1 on."""

        def power() -> tf.Tensor:
            step = self.cast(self.optimizer.iterations + 1)
            return keras.ops.power(self.cast(getattr(self.optimizer, beta)), step)

        return self.once(beta, power)


def _untraced(make: Callable[[], Any]) -> Any:
    """What `make` returns when it runs outside every `tf.function`.

    Graphs belong to threads. `tf.init_scope` is not enough here: the function being
    traced would still count the variable as its own, trace a second time because of
    it, and refuse to make one in a later trace.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def _zero_variable_like(variable: tf.Variable) -> tf.Variable:
    with tf.device(variable.device):
        zeros = tf.zeros(variable.shape, variable.dtype)
        return tf.Variable(zeros, trainable=False, name="scratch")


def sgd(update: Update) -> None:
    """SGD, with momentum or without."""
    optimizer = update.optimizer
    if optimizer.momentum == 0:
        tf.raw_ops.ResourceApplyGradientDescent(
            var=update.variable.handle,
            alpha=update.rate(),
            delta=update.gradient,
            use_locking=True,
        )
    else:
        tf.raw_ops.ResourceApplyKerasMomentum(
            **update.common(),
            accum=update.slot("momentums"),
            momentum=update.cast(optimizer.momentum),
            use_nesterov=bool(optimizer.nesterov),
        )


def adam(update: Update) -> None:
    """Adam, AdamW and AMSGrad."""
    optimizer = update.optimizer
    first, second = update.excess("beta_1"), update.excess("beta_2") ** 0.5
    arguments = dict(
        update.common(),
        lr=update.rate(second / first),
        m=update.slot("_momentums"),
        v=update.slot("_velocities"),
        beta1_power=update.power("beta_1"),
        beta2_power=update.power("beta_2"),
        beta1=update.exact(optimizer.beta_1),
        beta2=update.exact(optimizer.beta_2),
        epsilon=update.exact(optimizer.epsilon * second),
    )
    if optimizer.amsgrad:
        largest = update.slot("_velocity_hats")
        tf.raw_ops.ResourceApplyAdamWithAmsgrad(**arguments, vhat=largest)
    else:
        tf.raw_ops.ResourceApplyAdam(**arguments)


def _adamax(update: Update) -> None:
    optimizer = update.optimizer
    tf.raw_ops.ResourceApplyAdaMax(
        **dict(update.common(), lr=update.rate(1 / update.excess("beta_1"))),
        m=update.slot("_m"),
        v=update.slot("_u"),
        beta1_power=update.power("beta_1"),
        beta1=update.exact(optimizer.beta_1),
        beta2=update.exact(optimizer.beta_2),
        epsilon=update.exact(optimizer.epsilon),
    )


def _rmsprop(update: Update) -> None:
    optimizer = update.optimizer
    scratch = needs_scratch(optimizer)
    excess = update.excess("rho")
    arguments = dict(
        update.common(),
        lr=update.rate(excess**0.5),
        ms=update.slot("_velocities"),
        mom=update.zeroed_scratch() if scratch else update.slot("_momentums"),
        rho=update.exact(optimizer.rho),
        momentum=update.exact(0.0 if scratch else optimizer.momentum),
        epsilon=update.exact(optimizer.epsilon * excess),
    )
    if optimizer.centered:
        mean = update.slot("_average_gradients")
        tf.raw_ops.ResourceApplyCenteredRMSProp(**arguments, mg=mean)
    else:
        tf.raw_ops.ResourceApplyRMSProp(**arguments)


def _adadelta(update: Update) -> None:
    optimizer = update.optimizer
    tf.raw_ops.ResourceApplyAdadelta(
        **update.common(),
        accum=update.slot("_accumulated_grads"),
        accum_update=update.slot("_accumulated_delta_vars"),
        rho=update.exact(optimizer.rho),
        epsilon=update.exact(optimizer.epsilon * update.excess("rho")),
    )


Rule = Callable[[Update], None]
# AdamW has Adam's `update_step`: its weight decay is outside.
_RULES: dict[type, Rule] = {
    keras.optimizers.SGD: sgd,
    keras.optimizers.Adam: adam,
    keras.optimizers.Adamax: _adamax,
    keras.optimizers.RMSprop: _rmsprop,
    keras.optimizers.Adadelta: _adadelta,
}


def rule_of(optimizer: Any) -> Rule | None:
    """The rule with the maths of this optimizer's `update_step`; None where none has it."""
    for base, rule in _RULES.items():
        if keras_private.overridden(optimizer, base, *MATHS) is None:
            return rule
    return None


def needs_scratch(optimizer: Any) -> bool:
    """Whether the op wants a slot that this optimizer does without."""
    return isinstance(optimizer, keras.optimizers.RMSprop) and not optimizer.momentum > 0


def xla_lacks(optimizer: Any) -> bool:
    """Whether XLA can't compile this optimizer's op."""
    return isinstance(optimizer, keras.optimizers.Adam) and bool(optimizer.amsgrad)
