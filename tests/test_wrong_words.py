"""What somebody is told who misspells a name, or hands over another thing than is asked for."""

import json

import pytest
from command_line import call

import tfaccel
import tfaccel.explain
from tfaccel.cli import tune
from tfaccel.cli._command import UsageError
from tfaccel.core.plan import as_plan

MISSPELT = json.dumps({"schema": 1, "passes": [{"name": "fused_nrom"}]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (MISSPELT.encode(), "Did you mean 'fused_norm'"),
        (b"hello", "is not a tfaccel plan"),
        (b"PK\x03\x04\xa0\xff", "holds no text"),
    ],
)
def test_what_is_wrong_with_a_plan_is_told_with_its_file(tmp_path, content, message):
    path = tmp_path / "my_plan.json"
    path.write_bytes(content)
    for read in (as_plan, tfaccel.Plan.load):
        with pytest.raises(ValueError, match=f"my_plan.json.*{message}"):
            read(path)


def test_a_folder_is_no_plan(tmp_path):
    with pytest.raises(ValueError, match="`plan` must be.*that is a folder"):
        as_plan(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"includes": ["fused_nrom"]}, ValueError, "'fused_norm'.*`includes`"),
        ({"excludes": ["fused_nrom"]}, ValueError, "'fused_norm'.*`excludes`"),
        ({"guard": "no"}, TypeError, "`guard` must be.*'no'"),
        ({"verbose": 7}, ValueError, "`verbose` must be.*7"),
    ],
)
def test_the_argument_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        tfaccel.AccelCallback(**arguments)


@pytest.mark.parametrize("text", ["{}", MISSPELT, "no JSON"])
def test_a_manifest_that_is_none_is_told_with_its_folder(tmp_path, text):
    (tmp_path / "tfaccel.json").write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path} is not a model that tfaccel saved"):
        tfaccel.load(tmp_path)


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(ValueError, match="that exists.*no_such_folder"):
        tfaccel.data.check(tmp_path / "no_such_folder")


def test_a_path_is_no_model_to_explain():
    with pytest.raises(TypeError, match="`model` must be a keras.Model. Received: str"):
        tfaccel.explain.explain("model.keras")


def test_another_file_is_no_reason_to_load_pickles(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(MISSPELT)
    with pytest.raises(UsageError, match="no .npz file: numpy.savez") as told:
        call(tune.COMMAND, "mlp", "--data", path, "-o", tmp_path / "out.json")
    assert "pickle" not in str(told.value)
