"""explain on the command line, and what MODEL stands for."""

import json

import keras
import pytest
import rich.console
from command_line import call
from explained import make

from tfaccel.cli import explain as command
from tfaccel.cli._command import UsageError
from tfaccel.core.plan import Plan
from tfaccel.passes import FusedNorm

layers = keras.layers


def test_the_command_in_all_forms(tmp_path):
    path = tmp_path / "plan.json"
    Plan((FusedNorm(),)).save(path)
    plain, under = (
        call(command.COMMAND, "resnet8"),
        call(command.COMMAND, "resnet8", "--plan", path),
    )
    data = json.loads(under.to_json())
    norms = [row for row in data["rows"] if row["kind"] == "BatchNormalization"]
    assert len(norms) == 9
    assert all(row["runs_as"].startswith("loops by XLA") for row in norms)
    assert data["plan"] == json.loads(path.read_text())
    assert json.loads(plain.to_json())["plan"] is None
    assert "| with passes |" in plain.to_markdown()
    assert "with passes" not in under.to_markdown()
    assert plain.to_markdown().count("\n| ") == len(plain.rows) + 2


def test_the_table_is_readable(capsys):
    rich.console.Console(width=120).print(call(command.COMMAND, "mlp"))
    shown = capsys.readouterr().out
    assert "matrix product" in shown
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "there is no such plan"), ("{}", "is no plan"), ("[]", "is no plan")],
)
def test_a_plan_that_can_not_be_read(tmp_path, text, message):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        call(command.COMMAND, "mlp", "--plan", path)


# What MODEL stands for


def kinds(found):
    return [row.kind for row in found.rows]


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "transformer", "MobileNet", "mobile_net"])
def test_named_models(name):
    found = call(command.COMMAND, name)
    assert kinds(found)[0] in ("Sequential", "Functional")
    assert kinds(found)[-1] == "Adam"


def test_the_size_of_a_named_model():
    found = call(command.COMMAND, "MobileNet", "--input_shape=64,64,3", "--classes=7")
    assert found.rows[0].output_shape == "?x7"
    assert next(row for row in found.rows if row.kind == "Conv2D").output_shape == "?x32x32x32"


def test_a_folder_does_not_hide_a_named_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlp").mkdir()
    assert kinds(call(command.COMMAND, "mlp"))[0] == "Sequential"


@pytest.mark.parametrize("optimizer, expected", [(None, "Adam"), ("sgd", "SGD")])
def test_a_saved_model_that_is_not_compiled(tmp_path, optimizer, expected):
    path = tmp_path / "m.keras"
    keras.Sequential([keras.Input((4,)), layers.Dense(2)]).save(path)
    words = [] if optimizer is None else [f"--optimizer={optimizer}"]
    assert kinds(call(command.COMMAND, path, *words))[-1] == expected


def test_a_saved_model_keeps_what_it_was_compiled_with(tmp_path):
    path = tmp_path / "m.keras"
    make(layers.Dense(2), optimizer="rmsprop").save(path)
    assert kinds(call(command.COMMAND, path))[-1] == "RMSprop"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: MODEL"),
        (["mlp", "cnn"], "unrecognized arguments: cnn"),
        (["resnet5"], "Did you mean .*ResNet50"),
        (["qqqqq"], "Received: 'qqqqq'. Such as mlp"),
        (["nowhere.keras"], "no such file: nowhere.keras"),
        (["folder/nowhere"], "no such file"),
        (["mlp", "--input_shape=8,x"], "--input_shape must be positive integers.*'8,x'"),
        (["mlp", "--input_shape=0"], "--input_shape must be positive"),
        (["MobileNet", "--input_shape=8,8,3"], "can't be built with --input_shape=8,8,3"),
        (["mlp", "--optimizer=fast"], "--optimizer or --loss: .*fast"),
        (["mlp", "--loss=none_such"], "--optimizer or --loss: .*none_such"),
    ],
)
def test_models_that_there_are_not(words, message):
    with pytest.raises(UsageError, match=message):
        call(command.COMMAND, *words)


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04 broken"])
def test_a_broken_file_is_one_line(tmp_path, content):
    path = tmp_path / "m.keras"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="m.keras can't be loaded: .+") as caught:
        call(command.COMMAND, path)
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_model_of_their_own(tmp_path):
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(UsageError, match="Received a folder"):
        call(command.COMMAND, tmp_path / "folder.keras")
    path = tmp_path / "m.keras"
    make(layers.Dense(2)).save(path)
    with pytest.raises(UsageError, match="--classes is for named models"):
        call(command.COMMAND, path, "--classes=3")
