"""One worker of several: runs scenarios by name and writes what came of them.

    python scenarios.py OUT_DIR SCENARIO...

TF_CONFIG, or Slurm's variables, say which worker it is; TEST_WORKER is its place among
all. Every worker runs the same.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import sys
import time
import unittest.mock

import keras
import models
import numpy as np
import tensorflow as tf

import tfaccel
from tfaccel.autotune import trial_runner
from tfaccel.autotune.expected.expectation import Candidate
from tfaccel.distribute import AccelStrategy, compression
from tfaccel.measure import racing

SEED = 20261120


def weights(model):
    return [w.astype("float64").tolist() for w in model.get_weights()]


def same_as_one(strategy, out):
    with strategy.scope():
        model = models.cnn(synchronized=True)
    history = models.train_cnn(model)
    x, y = models.images(33, seed=9)
    return {
        "history": history,
        "weights": weights(model),
        "evaluation": model.evaluate(x[:32], y[:32], batch_size=16, verbose=0),
        "predictions": model.predict(x, batch_size=16, verbose=0).tolist(),
    }


def dictionaries(strategy, out):
    with strategy.scope():
        model = models.two_inputs()
    return {"history": models.train_two_inputs(model), "weights": weights(model)}


def uneven(strategy, out, samples=41):
    """A last batch that can't be shared evenly."""
    with strategy.scope():
        model = models.cnn(synchronized=False)
    x, y = models.images(samples)
    history = model.fit(
        x, y, batch_size=32, epochs=2, shuffle=False, verbose=0, validation_data=(x, y)
    )
    return {"history": history.history, "weights": weights(model)}


def last_of_one(strategy, out):
    """A last batch of one sample."""
    return uneven(strategy, out, samples=33)


def thirds(strategy, out):
    """For three workers: batches of 15, and last batches of 4 and 2 samples."""
    with strategy.scope():
        model = models.cnn(synchronized=True)
    found = {"even": models.train_cnn(model, batch_size=15), "reason": strategy.reason}
    with strategy.scope():
        model = models.cnn(synchronized=False)
    for last in (4, 2):
        x, y = models.images(15 + last)
        history = model.fit(x, y, batch_size=15, epochs=2, shuffle=False, verbose=0)
        found[f"{last}"] = {"history": history.history, "weights": weights(model)}
    return found


def unequal_workers(strategy, out):
    """Each worker brings its own data, and one has more batches than the other."""
    with strategy.scope():
        model = models.cnn(synchronized=True)

    def own(context):
        x, y = models.images(16 + 8 * context.input_pipeline_id, seed=context.input_pipeline_id)
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)

    dataset = strategy.distribute_datasets_from_function(own)
    history = model.fit(dataset, epochs=2, verbose=0).history
    return {"history": history, "weights": weights(model)}


def shuffled(strategy, out):
    """Which samples this worker sees; with a loss that only the samples decide."""
    with strategy.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.arange(48, dtype="float32")[:, None]
    y = np.square(x)
    loss = model.fit(x, y, batch_size=16, verbose=0).history["loss"][0]
    numbers = tf.data.Dataset.range(48).shuffle(48).batch(16)
    seen = []
    for batch in strategy.distribute(numbers):
        for share in strategy.experimental_local_results(batch):
            seen += share.numpy().tolist()
    expected = model.evaluate(x, y, batch_size=16, verbose=0)
    return {"loss": loss, "expected": expected, "seen": seen}


def seeded(strategy, out):
    """What a seed of the user's gives is what it gives without workers."""
    return {"numbers": [int(n) for n in tf.data.Dataset.range(9).shuffle(9)]}


def files(strategy, out):
    """Each worker reads files of its own; one holds more than the other."""
    for index, numbers in enumerate((range(10), range(10, 30))):
        # Every worker writes the same.
        text = "".join(f"{number}\n" for number in numbers)
        (out / f"numbers-{index}.txt").write_text(text)
    strategy.reduce("SUM", tf.constant(1.0), axis=None)
    dataset = tf.data.TextLineDataset([str(out / f"numbers-{index}.txt") for index in (0, 1)])
    dataset = dataset.map(lambda line: tf.strings.to_number(line)).batch(8)
    batches = [
        share.numpy().tolist()
        for batch in strategy.distribute(dataset, "file")
        for share in strategy.experimental_local_results(batch)
    ]
    return {"batches": batches}


class Interruption(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def resumed(strategy, out):
    """Stopped after two epochs and resumed by a new model; the chief alone has files."""
    task = int(os.environ["TEST_WORKER"])
    backup = out / f"backup-{task}"
    x, y = models.images(32)

    def fit(*callbacks):
        with strategy.scope():
            model = models.mlp()
        history = model.fit(
            x, y, batch_size=16, epochs=4, shuffle=False, verbose=0, callbacks=[*callbacks]
        )
        return model, history.history["loss"]

    with contextlib.suppress(KeyboardInterrupt):
        fit(keras.callbacks.BackupAndRestore(strategy.backup_dir(backup)), Interruption())
    checkpoint = strategy.checkpoint_filepath(out / f"checkpoint-{task}.keras")
    model, losses = fit(
        keras.callbacks.BackupAndRestore(strategy.backup_dir(backup)),
        keras.callbacks.ModelCheckpoint(checkpoint),
    )
    whole, all_losses = fit()
    if strategy.is_chief:
        loaded = keras.models.load_model(checkpoint)
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), saved_alone(model, out, x))
    return {
        "losses": losses,
        "all_losses": all_losses,
        "weights": weights(model),
        "whole": weights(whole),
        "files": sorted(path.name for path in out.glob(f"[bc]*-{task}*")),
    }


def saved_alone(model, out, x):
    """The chief may save without the others, as nothing is reduced for it."""
    path = out / "alone.keras"
    model.save(path)
    return keras.models.load_model(path).predict(x, verbose=0)


def trained_with(strategy, *callbacks, validates=False):
    """For two epochs of twenty steps: spreading the data anew for each epoch takes longest."""
    with strategy.scope():
        model = models.mlp()
    x, y = images = models.images(320)
    history = model.fit(
        x,
        y,
        batch_size=16,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=images if validates else None,
        callbacks=[*callbacks],
    )
    return {"history": history.history, "weights": weights(model)}


@functools.cache
def trained_plainly(strategy):
    """The same without tfaccel; several scenarios compare with it."""
    return trained_with(strategy, validates=True)


def tuned(strategy, out):
    """Trials on all workers in step; nothing can win, so the training must be as without."""
    trial_runner.WORTHWHILE = 1e9
    # Each worker has a clock of its own, at another time and running at another speed.
    pace = 1 + int(os.environ["TEST_WORKER"])
    accel = tfaccel.AccelCallback(
        includes=["fused_optimizer"],
        tuning_share=None,
        max_tuning_seconds=1e6,
        cache_dir=out / f"plans-{os.environ['TEST_WORKER']}",
        clock=lambda: pace * (1000.0 + time.perf_counter()),
    )
    found = trained_with(strategy, accel)
    again = tfaccel.AccelCallback(
        includes=["fused_optimizer"],
        tuning_share=None,
        cache_dir=out / f"plans-{os.environ['TEST_WORKER']}",
    )
    trained_with(strategy, again)
    return {
        "tuned": found,
        "plain": trained_plainly(strategy),
        "report": accel.report.to_json(),
        "again": again.report.cached,
        "cached": len(list(out.glob(f"plans-{os.environ['TEST_WORKER']}/*"))),
    }


def raced(strategy, out):
    """A candidate that is raced on the steps of the training: all take the same turns."""
    task = os.environ["TEST_WORKER"]
    pace = 1 + int(task)
    # Evidence is each machine's own; the chief's counts.
    accel = tfaccel.AccelCallback(
        includes=["fused_optimizer"],
        tuning="quick",
        tuning_share=1.0,
        cache_dir=out / f"raced-{task}",
        clock=lambda: pace * (1000.0 + time.perf_counter()),
    )
    with (
        unittest.mock.patch.object(Candidate, "pays", lambda *args: True),
        unittest.mock.patch.object(racing, "CLEARLY_SLOWER", math.inf),
    ):
        found = trained_with(strategy, accel)
    return {
        "raced": found,
        "plain": trained_plainly(strategy),
        "path": [phase.name for phase in accel.session.path],
        "report": accel.report.to_markdown(),
    }


def accelerated(strategy, out):
    """A plan on all workers, measured by ProfilerCallback."""
    accel = tfaccel.AccelCallback(["fused_norm", "fused_optimizer"])
    folder = out / f"profile-{os.environ['TEST_WORKER']}"
    profiler = tfaccel.ProfilerCallback(folder, compare_every=2)
    found = trained_with(strategy, accel, profiler, validates=True)
    return {
        "accelerated": found,
        "plain": trained_plainly(strategy),
        "plan": accel.plan.names,
        "summary": profiler.summary(),
        "files": [path.name for path in folder.glob("*.jsonl")],
    }


@dataclasses.dataclass(frozen=True)
class Broken(tfaccel.Pass):
    """Fails while it is traced, on one worker only."""

    name = "broken"

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        if os.environ["TEST_WORKER"] == "1":
            raise RuntimeError("not on this one")
        yield


def broken(strategy, out):
    """A plan that one worker can't build must not be used by the other."""
    accel = tfaccel.AccelCallback(
        includes=["broken"], tuning_share=None, max_tuning_seconds=1e6, cache_dir=False
    )
    found = trained_with(strategy, accel)
    plain = trained_plainly(strategy)
    return {"found": found, "plain": plain, "report": accel.report.to_json()}


def loss_scaled(strategy, out):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with strategy.scope():
            model = models.mlp()
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = models.images(32)
    history = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    return {"history": history.history, "weights": weights(model)}


def reductions(strategy, out):
    """`reduce` as Keras uses it, and as a training loop does."""
    task = int(os.environ["TEST_WORKER"])

    @tf.function
    def losses():
        return strategy.run(lambda: {"a": tf.constant(task + 1.0), "b": tf.constant([task, 2.0])})

    values = losses()
    both = strategy.reduce("SUM", values, axis=None)
    first = strategy.reduce("MEAN", values, axis=None)
    scalar = strategy.reduce("MEAN", values["a"], axis=0)
    return {
        "sum": {key: value.numpy().tolist() for key, value in both.items()},
        "first": {key: np.array(value).tolist() for key, value in first.items()},
        "scalar": float(scalar),
        "vector": strategy.reduce("MEAN", values["b"], axis=None).numpy().tolist(),
        "unequal": strategy.reduce("MEAN", tf.fill([2 + task], task + 5.0), axis=None)
        .numpy()
        .tolist(),
        "bytes": list(strategy.strategy.share_bytes(bytes([1, 2, 3, 4, task]))),
        "nothing": list(strategy.strategy.share_bytes(b"")),
        "chief": strategy.is_chief,
        "replicas": strategy.num_replicas_in_sync,
        "reason": strategy.reason,
    }


def compressed(strategy, out):
    """Gradients in bfloat16: the sums of known ones, in all ways, and a training."""
    grads = [np.linspace(0.1, 3.7, 7, dtype="float32") * (1 + task_of(strategy)), np.ones((2, 3))]

    def sums(most_gathered):
        with strategy.scope():
            variables = [keras.Variable(np.zeros(np.shape(g), "float32")) for g in grads]
            optimizer = keras.optimizers.SGD(1.0)
            optimizer.build(variables)

        @tf.function
        def step():
            given = [tf.constant(g, tf.float32) for g in grads]
            strategy.run(lambda: optimizer.apply(given, variables))

        small = compression.compressed(bytes_per_pack=16)
        with (
            unittest.mock.patch.object(compression, "_MOST_GATHERED", most_gathered),
            unittest.mock.patch.object(strategy.strategy, "_compressed", small),
        ):
            step()
        return [(-np.array(v)).astype("float64").tolist() for v in variables]

    found = {"gathered": sums(2), "scattered": sums(1)}
    with unittest.mock.patch.object(compression, "collectives_of", lambda context: None):
        found["reduced"] = sums(1)
    found["own"] = [np.array(g).tolist() for g in grads]
    return {**found, **same_as_one(strategy, out)}


def task_of(strategy):
    return strategy.cluster_resolver.task_id


def main():
    out = pathlib.Path(sys.argv[1])
    if "seeded" in sys.argv:
        tf.random.set_seed(SEED)
    # It holds for the process.
    strategy = AccelStrategy(compress_gradients="bfloat16" if "compressed" in sys.argv else None)
    task = int(os.environ["TEST_WORKER"])
    for name in sys.argv[2:]:
        found = globals()[name](strategy, out)
        (out / f"result-{name}-{task}.json").write_text(json.dumps(found, default=float))
        print(name, "done", flush=True)
    # Whoever is done first waits for the others: a worker that leaves breaks the rest.
    strategy.reduce("SUM", tf.constant(1.0), axis=None)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
