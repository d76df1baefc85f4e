"""`tfaccel tune`: from an .npz file to a plan that AccelCallback takes."""

import json
import os
import pathlib

import catalogue
import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from clocks import FakeClock
from command_line import call

import tfaccel
from tfaccel.autotune import tune_and_cache as choosing
from tfaccel.autotune.offline import offline_trials
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial
from tfaccel.cli import tune as command
from tfaccel.cli._command import UsageError
from tfaccel.cli.inputs.feeds import file_feed
from tfaccel.cli.inputs.models import Chosen
from tfaccel.core.plan import Plan
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.passes import FusedOptimizer

layers = keras.layers
FUSED = Plan((FusedOptimizer(),))


def make(loss="mse", units=1):
    model = keras.Sequential([keras.Input((5,), name="rows"), layers.Dense(units, name="out")])
    model.compile("adam", loss)
    return model


def arrays(count=12, labels=(1,)):
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(count, 5)), "y": rng.normal(size=(count, *labels))}


@pytest.fixture
def folder(tmp_path):
    """A folder with a model and data that fit."""
    make().save(tmp_path / "m.keras")
    np.savez(tmp_path / "x.npz", **arrays())
    return tmp_path


def tune(folder, *words):
    """Tuning that has no time, unless words say so."""
    given = ["--data", folder / "x.npz", "-o", folder / "plan.json", "--max_seconds=0"]
    return call(command.COMMAND, folder / "m.keras", *given, *words)


def no_tuning(*arguments):
    raise AssertionError("nothing may be tuned")


# The command


def test_a_real_tuning(folder, capsys):
    before = (folder / "m.keras").read_bytes()
    words = ["--max_seconds=60", "--includes=fused_optimizer", "--batch_size=4"]
    found = tune(folder, *words, "--report", folder / "report.json")
    assert [trial.plan for trial in found.report.trials] == [Plan(), FUSED]
    assert Plan.load(folder / "plan.json") == found.report.plan
    assert Report.from_json((folder / "report.json").read_text()) == found.report
    assert (folder / "m.keras").read_bytes() == before
    assert found.exit_code == 0
    assert f"Tuned on {folder / 'x.npz'} (12 samples), batches of 4." in found.notes
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "fused_optimizer: " in shown.err
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture
def won(monkeypatch):
    """The tuner finds that the fused optimizer wins."""
    trials = (
        Trial(Plan(), Outcome.BASELINE, step_seconds=0.2, speedup=Speedup()),
        Trial(FUSED, Outcome.FASTER, "", 1.0, 0.1, Speedup(2.0, 1.9, 2.1, 6)),
    )
    report = Report(trials, FUSED, Speedup(2.0, 1.9, 2.1, 6), 3.0)
    monkeypatch.setattr(choosing, "tune_workload", lambda *arguments: report)
    return report


def test_the_plan_goes_into_the_callback(folder, won):
    tune(folder)
    accel = tfaccel.AccelCallback(plan=folder / "plan.json", verbose=0)
    data = arrays()
    keras.models.load_model(folder / "m.keras").fit(**data, verbose=0, callbacks=[accel])
    assert accel.plan == FUSED


def test_what_won_is_kept_for_the_callback_without_a_file(folder, won):
    tune(folder)
    (kept,) = pathlib.Path(os.environ["TFACCEL_CACHE_DIR"]).glob("*.json")
    assert Report.from_json(json.dumps(json.loads(kept.read_text())["report"])) == won


def test_no_choice_for_want_of_time_is_not_kept(folder):
    found = tune(folder)
    assert found.report.plan.is_baseline
    assert not found.report.complete
    assert not list(pathlib.Path(os.environ["TFACCEL_CACHE_DIR"]).glob("*.json"))


def test_all_forms(folder, won, capsys):
    found = tune(folder)
    rich.console.Console(width=120).print(found)
    for text in (capsys.readouterr().out, found.to_markdown(), found.to_json()):
        assert "fused_optimizer" in text
        assert "plan.json" in text
    data = json.loads(found.to_json())
    assert data["notes"][-1] == f"Written: {folder / 'plan.json'}"
    assert Report.from_json(found.to_json()) == won


def test_a_model_that_is_not_compiled_is_compiled_and_said_to_be(folder, won):
    keras.Sequential([keras.Input((5,)), layers.Dense(1)]).save(folder / "m.keras")
    assert tune(folder).notes[0] == "Compiled with the optimizer Adam and the loss mse."


@pytest.mark.parametrize(
    ("activation", "labels", "loss"),
    [
        ("softmax", np.zeros(12, int), "sparse_categorical_crossentropy"),
        ("sigmoid", np.zeros(12), "binary_crossentropy"),
    ],
)
def test_the_loss_follows_the_activation(folder, won, activation, labels, loss):
    head = layers.Dense(3 if activation == "softmax" else 1, activation=activation)
    keras.Sequential([keras.Input((5,)), head]).save(folder / "m.keras")
    np.savez(folder / "x.npz", x=arrays()["x"], y=labels)
    assert f"loss {loss}" in tune(folder).notes[0]
    assert "Compiled" not in tune(folder, "--optimizer=sgd", f"--loss={loss}").notes[0]


def test_a_plan_that_can_not_be_written_in_the_end_is_not_lost(folder, won, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    found = tune(folder)
    assert found.exit_code == 1
    assert "plan.json could not be written (No space left on device). It was: {" in found.notes[-1]
    assert "fused_optimizer" in found.notes[-1]


# Words that can't be taken: before anything is tuned


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "{folder}"], "--output must be a file. Received a folder"),
        (["-o", "{folder}/nowhere/plan.json"], "--output=.* can't be written: No such file"),
        (["--report", "{folder}"], "--report must be a file. Received a folder"),
        (["--report", "{folder}/m.keras/report.json"], "--report=.* can't be written: Not a dir"),
        (["--includes=fast"], "--includes or --excludes: No pass is called 'fast'"),
        (["--excludes=fast"], "--includes or --excludes: No pass is called 'fast'"),
        (["--data="], "needs --data=x.npz"),
        (["-o", ""], "needs --output=plan.json"),
        (["--data", "nowhere.npz"], "--data: there is no such file: nowhere.npz"),
        (["--classes=3"], "--classes is for named models"),
    ],
)
def test_wrong_words(folder, words, message, monkeypatch):
    monkeypatch.setattr(choosing, "tune_workload", no_tuning)
    with pytest.raises(UsageError, match=message):
        tune(folder, *(word.format(folder=folder) for word in words))


def test_a_file_that_may_not_be_written_to(folder, monkeypatch):
    (folder / "plan.json").write_text("{}")
    monkeypatch.setattr(command.os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="plan.json can't be written to"):
        tune(folder)


def test_an_eager_model_is_told_so(folder, monkeypatch):
    model = make()
    model.compile("adam", "mse", run_eagerly=True)
    monkeypatch.setattr(command, "load_model", lambda name, values: Chosen(name, model))
    with pytest.raises(UsageError, match="run_eagerly"):
        tune(folder)


# The file


def feed(tmp_path, model=None, batch_size=4, **contents):
    np.savez(tmp_path / "x.npz", **contents)
    return file_feed(Chosen("m", model or make()), tmp_path / "x.npz", batch_size)


def first(tmp_path, **contents):
    return next(iter(feed(tmp_path, **contents).dataset))


@pytest.mark.parametrize(
    "names", [("x", "y"), ("x_train", "y_train"), ("rows", "out"), ("x_rows", "y_out")]
)
def test_the_names_of_arrays(tmp_path, names):
    data = dict(zip(names, arrays().values(), strict=True))
    x, y = first(tmp_path, **data, x_test=np.zeros(3), y_test=np.zeros(3))
    assert (x.shape, y.shape) == ((4, 5), (4, 1))
    assert (x.dtype, y.dtype) == (tf.float32, tf.float32)
    np.testing.assert_allclose(x, arrays()["x"][:4], rtol=1e-6)


def test_sample_weights(tmp_path):
    _, _, weight = first(tmp_path, **arrays(), sample_weight=np.arange(12.0))
    np.testing.assert_array_equal(weight, [0, 1, 2, 3])


def test_fewer_samples_than_a_batch(tmp_path):
    found = feed(tmp_path, batch_size=100, **arrays())
    assert found.batch_size == 12
    assert next(iter(found.dataset))[0].shape == (12, 5)


def test_several_inputs_and_outputs(tmp_path):
    model, given = catalogue.several_inputs_and_outputs()
    contents = given["x"] | {f"y_{name}": value for name, value in given["y"].items()}
    x, y = next(iter(feed(tmp_path, model, **contents).dataset))
    np.testing.assert_array_equal(x["b"], given["x"]["b"][:4])
    np.testing.assert_array_equal(y["v"], given["y"]["v"][:4])


def test_arrays_by_number(tmp_path):
    inputs = [keras.Input((2,)), keras.Input((3,))]
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(inputs)))
    model.compile("sgd", "mse")
    x, _ = next(
        iter(
            feed(tmp_path, model, x_0=np.zeros((6, 2)), x_1=np.ones((6, 3)), y=np.zeros(6)).dataset
        )
    )
    assert [array.shape for array in x] == [(4, 2), (4, 3)]


def test_a_model_without_declared_inputs_takes_x_and_y(tmp_path):
    model = catalogue.CustomStep()
    model.compile("sgd")
    x, y = next(
        iter(feed(tmp_path, model, x=np.zeros((6, 3)), y=np.zeros((6, 4), "uint8")).dataset)
    )
    assert (x.dtype, y.dtype) == (tf.float32, tf.uint8)


def test_labels_are_optional_where_there_is_no_loss(tmp_path):
    model = make(loss=None)
    assert len(next(iter(feed(tmp_path, model, x=arrays()["x"]).dataset))) == 1


def changed(**changes):
    return {key: value for key, value in (arrays() | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (changed(y=None), "an array for the output 'out', called y or y_train or .*It holds: x"),
        (changed(x=None), "an array for the input 'rows', called x or x_train or rows"),
        (changed(y=np.zeros((9, 1))), "'y' of .* as many samples as 'x', 12. Received: 9"),
        (changed(sample_weight=np.ones(3)), "'sample_weight' of .* as 'x', 12. Received: 3"),
        (changed(x=np.zeros((12, 4))), "'x' of .* shape \\(\\?, 5\\).*Received: \\(12, 4\\)"),
        (changed(x=np.zeros(12)), "'x' of .* shape \\(\\?, 5\\) .*'rows'. Received: \\(12\\)"),
        (changed(x=np.zeros((0, 5))), "'x' of .* at least one sample. Received: \\(0, 5\\)"),
        (changed(x=np.float32(1)), "'x' of .* at least one sample. Received: \\(\\)"),
        (changed(x=np.full((12, 5), "a")), "'x' of .* hold numbers .*Received: dtype <U1"),
        (changed(x=np.zeros((12, 5), complex)), "'x' of .* numbers .*dtype complex128"),
        (changed(y=np.zeros((12, 3))), "'y' of .* one number for each output, shape \\(\\?, 1\\)"),
        (changed(y=np.full((12, 1), "a")), "'y' of .* must hold numbers. Received: dtype <U1"),
        (changed(x=np.full((12, 5), None)), "'x' of .* can't be read: Object arrays"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, contents, message):
    with pytest.raises(UsageError, match=message):
        feed(tmp_path, **contents)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(12, 3), "whole numbers from 0 to 2. Received: 3 to 3, dtype int64"),
        (np.full(12, -1), "whole numbers from 0 to 2. Received: -1 to -1"),
        (np.full(12, 0.5), "whole numbers from 0 to 2. Received: 0.5 to 0.5"),
        (np.zeros((12, 3)), "the index of a class, shape \\(\\?\\), for the loss sparse_cat"),
    ],
)
def test_class_labels_that_do_not_fit(tmp_path, labels, message):
    model = make("sparse_categorical_crossentropy", units=3)
    with pytest.raises(UsageError, match=f"the array 'y' of .* must hold {message}"):
        feed(tmp_path, model, **changed(y=labels))


@pytest.mark.parametrize("labels", [np.zeros(12, int), np.zeros((12, 1), "uint8"), np.ones(12)])
def test_class_labels_that_fit(tmp_path, labels):
    model = make("sparse_categorical_crossentropy", units=3)
    assert feed(tmp_path, model, **changed(y=labels)).batch_size == 4


def test_indices_beyond_an_embedding(tmp_path):
    body = [layers.Embedding(7, 2), layers.Flatten(), layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *body])
    model.compile("sgd", "mse")
    with pytest.raises(UsageError, match="indices from 0 to 6.*Received: 7 to 7"):
        feed(tmp_path, model, **changed(x=np.full((12, 5), 7)))
    with pytest.raises(
        UsageError, match="must hold whole numbers \\(int32\\). Received: dtype flo"
    ):
        feed(tmp_path, model, **changed())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.write_bytes(b""), "is no .npz file"),
        (lambda path: path.write_bytes(b"no zip"), "is no .npz file"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut"), "is no .npz file"),
        (lambda path: path.mkdir(), "is no .npz file: .*Is a directory"),
    ],
)
def test_files_that_are_none(tmp_path, write, message):
    path = tmp_path / "x.npz"
    write(path)
    with pytest.raises(UsageError, match=f"--data: .*{message}") as caught:
        file_feed(Chosen("m", make()), path, 4)
    assert "\n" not in str(caught.value)


def test_a_file_of_one_array(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UsageError, match="holds one array; numpy.savez"):
        file_feed(Chosen("m", make()), tmp_path / "x.npy", 4)


def test_a_file_that_breaks_off(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", **arrays(5000))
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[1000:2000] = bytes(1000)
    (tmp_path / "x.npz").write_bytes(whole)
    with pytest.raises(UsageError, match="the array 'x' of .* can't be read: .+"):
        file_feed(Chosen("m", make()), tmp_path / "x.npz", 4)


# The bench that tune and bench share


def test_the_workbench_leaves_no_trace():
    model = make()
    data = tf.data.Dataset.from_tensor_slices(tuple(arrays().values())).batch(4)
    before = [w.numpy() for w in model.weights]
    own = model.train_function
    with (
        pytest.raises(ZeroDivisionError),
        offline_trials(model, data, clock=FakeClock(1.0)) as bench,
    ):
        assert bench.workload.step_seconds == 1.0
        assert len(bench.workload.batches) == 3
        assert int(model.optimizer.iterations.numpy()) == 3
        raise ZeroDivisionError
    assert model.train_function is own
    assert int(model.optimizer.iterations.numpy()) == 0
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_the_workbench_needs_a_batch():
    data = tf.data.Dataset.from_tensor_slices(tuple(arrays().values())).batch(4).take(0)
    with pytest.raises(ValueError, match="at least one batch"), offline_trials(make(), data):
        pass
