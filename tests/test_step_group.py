"""The loop around Keras's step, by itself."""

import math

import pytest
import tensorflow as tf

from tfaccel.steps.multi_step import MultiStep


def counting(spoiled=None, keep=None):
    """A step that gives its batch's sum and how often it ran; the loss is NaN at `spoiled`."""
    runs = tf.Variable(0)

    @tf.function(reduce_retracing=True)
    def one(batch):
        runs.assign_add(1)
        total = tf.reduce_sum(batch)
        loss = tf.where(total == -1.0 if spoiled is None else total == spoiled, math.nan, total)
        return {"loss": loss, "runs": runs.read_value(), **(keep(batch) if keep else {})}

    def step(iterator):
        for _, batch in zip(range(1), iterator, strict=False):
            logs = one(batch)
        return logs

    return step, runs


def numbers(count=5):
    return iter(tf.data.Dataset.range(count).map(lambda i: tf.cast(i, tf.float32)).batch(1))


def losses(logs):
    return [log["loss"] for log in logs]


def test_each_step_s_logs_in_order():
    group, iterator = MultiStep(counting()[0]), numbers()
    assert group(iterator, 3) == [{"loss": float(i), "runs": i + 1} for i in range(3)]
    assert losses(group(iterator, 1)) == [3.0]
    assert group.experimental_get_tracing_count() == 1


def test_it_ends_where_the_data_end():
    group, iterator = MultiStep(counting()[0]), numbers()
    assert losses(group(iterator, 100)) == [0.0, 1.0, 2.0, 3.0, 4.0]
    with pytest.raises(StopIteration):
        group(iterator, 100)


def test_it_ends_after_a_loss_that_is_not_finite():
    step, runs = counting(spoiled=2.0)
    group, iterator = MultiStep(step), numbers()
    found = losses(group(iterator, 100))
    assert found[:2] == [0.0, 1.0]
    assert math.isnan(found[2])
    assert len(found) == runs.numpy() == 3
    assert losses(group(iterator, 100)) == [3.0, 4.0]


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [[1.0], [3.0], [4.0]]), (2, [[1.0, 3.0], [4.0]]), (9, [[1, 3, 4]])]
)
def test_of_steps_that_keras_counts_as_one_the_last_logs(most, expected):
    group, iterator = MultiStep(counting()[0], steps_per_execution=2), numbers()
    assert [losses(group(iterator, most)) for _ in expected] == expected


def test_a_call_that_keras_counts_as_one_is_not_broken_off():
    step, runs = counting(spoiled=0.0)
    found = MultiStep(step, steps_per_execution=3)(numbers(), 5)
    assert losses(found) == [2.0, 4.0]
    assert runs.numpy() == 5


def test_logs_that_are_no_numbers_stay_tensors():
    def keep(batch):
        return {"vector": tf.concat([batch, batch], 0), "nested": {"bool": batch[0] > 0.5}}

    def named(batch):
        return {**keep(tf.ensure_shape(batch, (1,)))}

    logs = MultiStep(counting(keep=named)[0])(numbers(), 2)
    assert [log["vector"].numpy().tolist() for log in logs] == [[0.0, 0.0], [1.0, 1.0]]
    assert [bool(log["nested"]["bool"]) for log in logs] == [False, True]


def test_logs_of_no_fixed_shape_are_told_so():
    group = MultiStep(counting(keep=lambda batch: {"all": batch})[0])
    with pytest.raises(TypeError, match="logs must be tensors of one shape"):
        group(numbers(), 2)
