"""One time step of LSTM and GRU cells, forward and backward, in terms of whole tensors.

The product of all inputs with the input weights is made before the loop over time, the
gradients of weights after it: a step computes only what depends on the step before.

In the formulas `W` is the recurrent weights, `s` the sigmoid, `*` by elements; `dx` is the
gradient of `x`, and `f`, `i`, ... in a gradient are the gates after their activation.
"""

import abc
from typing import ClassVar

import tensorflow as tf

Tensors = tuple[tf.Tensor, ...]


class Cell(abc.ABC):
    """What a loop over time repeats. Stateless: weights and states are handed in.

    `z` is the input of a step behind the input weights and bias, `(batch, gates * units)`;
    a state is `(batch, units)`, and the first one is what the cell puts out. All float32.
    """

    gates: ClassVar[int]

    @abc.abstractmethod
    def step(self, z: tf.Tensor, states: Tensors, weights: Tensors) -> tuple[Tensors, Tensors]:
        """The next states, and the gates that `step_back` needs, each `(batch, units)`."""

    @abc.abstractmethod
    def step_back(
        self, gradients: Tensors, saved: Tensors, states: Tensors, weights: Tensors
    ) -> tuple[tf.Tensor, Tensors]:
        """The gradients of `z`, `(batch, gates * units)`, and of the states before the step.

        Args:
            gradients: of the states after the step, each `(batch, units)`.
            saved: by `step`.
            states: before the step.
            weights: as `step` had them.
        """

    @abc.abstractmethod
    def weight_gradients(self, dz: tf.Tensor, saved: Tensors, output: tf.Tensor) -> Tensors:
        """The gradients of the weights, from all steps at once.

        Args:
            dz: the gradients of `z`, `(steps, batch, gates * units)`.
            saved: by each `step`, `(steps, batch, units)`.
            output: the first state before each step, `(steps, batch, units)`.
        """


class LSTM(Cell):
    """Long short-term memory: the states are `(output, carry)`, the weights `(recurrent,)`.

    With `[i, f, g, o] = z + h W`: `c' = s(f) c + s(i) tanh(g)`, `h' = s(o) tanh(c')`.
    Back, with `e = dc' + dh' o (1 - tanh(c')^2)`: `dz = [e g i (1 - i), e c f (1 - f),
    e i (1 - g^2), dh' tanh(c') o (1 - o)]`, `dh = dz W^T`, `dc = e f`; `dW = sum(h^T dz)`.

    Source: Hochreiter and Schmidhuber, 1997, https://doi.org/10.1162/neco.1997.9.8.1735;
    gates in Keras's order: input, forget, candidate, output.
    """

    gates: ClassVar[int] = 4

    def step(self, z: tf.Tensor, states: Tensors, weights: Tensors) -> tuple[Tensors, Tensors]:
        output, carry = states
        i, f, g, o = tf.split(z + tf.matmul(output, weights[0]), self.gates, axis=-1)
        i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
        carry = f * carry + i * g
        return (o * tf.tanh(carry), carry), (i, f, g, o)

    def step_back(
        self, gradients: Tensors, saved: Tensors, states: Tensors, weights: Tensors
    ) -> tuple[tf.Tensor, Tensors]:
        (d_output, d_carry), (i, f, g, o), (_, carry) = gradients, saved, states
        squashed = tf.tanh(f * carry + i * g)
        d_carry += d_output * o * (1 - squashed * squashed)
        dz = tf.concat(
            [
                d_carry * g * i * (1 - i),
                d_carry * carry * f * (1 - f),
                d_carry * i * (1 - g * g),
                d_output * squashed * o * (1 - o),
            ],
            axis=-1,
        )
        return dz, (tf.matmul(dz, weights[0], transpose_b=True), d_carry * f)

    def weight_gradients(self, dz: tf.Tensor, saved: Tensors, output: tf.Tensor) -> Tensors:
        return (_over_steps(output, dz),)


class GRU(Cell):
    """Gated recurrent unit, reset after the product; the weights are `(recurrent, bias)`.

    With `[u, r, n] = z` and `[a, b, m] = h W + bias`:
    `h' = s(u + a) h + (1 - s(u + a)) tanh(n + s(r + b) m)`.
    Back: `dn = dh' (1 - u) (1 - n^2)`, `du = dh' (h - n) u (1 - u)`, `dr = dn m r (1 - r)`,
    `p = [du, dr, dn r]`, `dh = dh' u + p W^T`; `dW = sum(h^T p)`, `dbias = sum(p)`.

    Source: Cho et al., 2014, https://arxiv.org/abs/1406.1078v1 (the first version, which
    cuDNN has too); gates in Keras's order: update, reset, candidate.
    """

    gates: ClassVar[int] = 3

    def step(self, z: tf.Tensor, states: Tensors, weights: Tensors) -> tuple[Tensors, Tensors]:
        (output,), (kernel, bias) = states, weights
        update, reset, candidate = tf.split(z, self.gates, axis=-1)
        recurrent = tf.split(tf.matmul(output, kernel) + bias, self.gates, axis=-1)
        update, reset = tf.sigmoid(update + recurrent[0]), tf.sigmoid(reset + recurrent[1])
        candidate = tf.tanh(candidate + reset * recurrent[2])
        new = update * output + (1 - update) * candidate
        return (new,), (update, reset, candidate, recurrent[2])

    def step_back(
        self, gradients: Tensors, saved: Tensors, states: Tensors, weights: Tensors
    ) -> tuple[tf.Tensor, Tensors]:
        (d_output,), (update, reset, candidate, recurrent), (output,) = gradients, saved, states
        d_candidate = d_output * (1 - update) * (1 - candidate * candidate)
        d_update = d_output * (output - candidate) * update * (1 - update)
        d_reset = d_candidate * recurrent * reset * (1 - reset)
        d_product = tf.concat([d_update, d_reset, d_candidate * reset], axis=-1)
        d_before = d_output * update + tf.matmul(d_product, weights[0], transpose_b=True)
        return tf.concat([d_update, d_reset, d_candidate], axis=-1), (d_before,)

    def weight_gradients(self, dz: tf.Tensor, saved: Tensors, output: tf.Tensor) -> Tensors:
        _, reset, _, _ = saved
        d_update, d_reset, d_candidate = tf.split(dz, self.gates, axis=-1)
        d_product = tf.concat([d_update, d_reset, d_candidate * reset], axis=-1)
        return _over_steps(output, d_product), tf.reduce_sum(d_product, axis=[0, 1])


class GRUResetBefore(Cell):
    """Gated recurrent unit, reset before the product; the weights are `(recurrent,)`.

    With `[u, r, n] = z` and `[a, b] = h V`, where `W = [V, C]`:
    `h' = s(u + a) h + (1 - s(u + a)) tanh(n + (s(r + b) h) C)`.
    Back: `dn` and `du` as for `GRU`, `p = dn C^T`, `dr = p h r (1 - r)`,
    `dh = dh' u + p r + [du, dr] V^T`; `dV = sum(h^T [du, dr])`, `dC = sum((r h)^T dn)`.

    Source: Cho et al., 2014, https://arxiv.org/abs/1406.1078 (from its third version on).
    """

    gates: ClassVar[int] = 3

    def step(self, z: tf.Tensor, states: Tensors, weights: Tensors) -> tuple[Tensors, Tensors]:
        (output,), (of_gates, of_candidate) = states, self._parts(weights)
        update, reset, candidate = tf.split(z, self.gates, axis=-1)
        recurrent = tf.split(tf.matmul(output, of_gates), 2, axis=-1)
        update, reset = tf.sigmoid(update + recurrent[0]), tf.sigmoid(reset + recurrent[1])
        candidate = tf.tanh(candidate + tf.matmul(reset * output, of_candidate))
        new = update * output + (1 - update) * candidate
        return (new,), (update, reset, candidate)

    def step_back(
        self, gradients: Tensors, saved: Tensors, states: Tensors, weights: Tensors
    ) -> tuple[tf.Tensor, Tensors]:
        (d_output,), (update, reset, candidate), (output,) = gradients, saved, states
        of_gates, of_candidate = self._parts(weights)
        d_candidate = d_output * (1 - update) * (1 - candidate * candidate)
        d_product = tf.matmul(d_candidate, of_candidate, transpose_b=True)
        d_update = d_output * (output - candidate) * update * (1 - update)
        d_reset = d_product * output * reset * (1 - reset)
        d_gates = tf.concat([d_update, d_reset], axis=-1)
        d_before = d_output * update + d_product * reset
        d_before += tf.matmul(d_gates, of_gates, transpose_b=True)
        return tf.concat([d_gates, d_candidate], axis=-1), (d_before,)

    def weight_gradients(self, dz: tf.Tensor, saved: Tensors, output: tf.Tensor) -> Tensors:
        _, reset, _ = saved
        units = output.shape[-1]
        d_gates, d_candidate = tf.split(dz, [2 * units, units], axis=-1)
        parts = [_over_steps(output, d_gates), _over_steps(reset * output, d_candidate)]
        return (tf.concat(parts, axis=-1),)

    def _parts(self, weights: Tensors) -> list[tf.Tensor]:
        """The weights of the two gates, and those of the candidate."""
        units = weights[0].shape[0]
        return tf.split(weights[0], [2 * units, units], axis=-1)


def _over_steps(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """The sum over steps and samples of outer products, as one matrix product."""
    flat = [tf.reshape(tensor, [-1, tensor.shape[-1]]) for tensor in (left, right)]
    return tf.matmul(flat[0], flat[1], transpose_a=True)
