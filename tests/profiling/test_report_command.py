"""`tfaccel report`: its forms, folders and what it can't do."""

import json
import pathlib
import sys

import pytest
from recorded import RECORDS, SUMMARY, run, saved

from tfaccel.cli._command import UsageError


def test_the_command_s_three_forms(tmp_path):
    pytest.importorskip("matplotlib")
    result = run(str(saved(tmp_path, RECORDS)))
    assert result.page == tmp_path / "report.html"
    found = json.loads(result.to_json())
    assert found["output"] == str(tmp_path / "report.html")
    assert found["summary"] == {key: value for key, value in SUMMARY.items() if key != "kind"}
    assert "| Step (median) | 16.15 ms | 95 % of steps within 18.75 ms |" in result.to_markdown()
    assert str(tmp_path / "report.html") in result.to_markdown()


def test_a_folder_and_an_output_of_one_s_own(tmp_path):
    pytest.importorskip("matplotlib")
    saved(tmp_path, RECORDS)
    output = tmp_path / "new" / "page.html"
    assert run(str(tmp_path), "-o", str(output)).page == output
    assert output.is_file()


def folder(tmp_path):
    return str(tmp_path)


def missing(tmp_path):
    return str(tmp_path / "absent.jsonl")


def no_profile(tmp_path):
    (tmp_path / "notes.txt").write_text("hello\n")
    return str(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (folder, "holds no profile.jsonl"),
        (missing, "There is no file"),
        (no_profile, "made by tfaccel.ProfilerCallback"),
    ],
)
def test_what_is_no_profile_is_told_in_a_line(tmp_path, make, message):
    word = make(tmp_path)
    with pytest.raises(UsageError, match=message) as error:
        run(word)
    assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"), [([], "required: profile"), (["a", "b"], "unrecognized arguments: b")]
)
def test_one_profile_is_wanted(words, message):
    with pytest.raises(UsageError, match=message):
        run(*words)


def test_the_profile_is_never_written_over(tmp_path):
    path = saved(tmp_path, RECORDS)
    before = path.read_bytes()
    for output in (path, tmp_path):
        with pytest.raises(UsageError, match="--output must be a file other than the profile"):
            run(str(path), "-o", str(output))
    assert path.read_bytes() == before


def test_an_output_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    path = saved(tmp_path, RECORDS)
    with pytest.raises(UsageError, match="can't be written"):
        run(str(path), "-o", str(path / "page.html"))


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_without_an_extra_it_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    path = saved(tmp_path, RECORDS)
    with pytest.raises(UsageError, match=r"pip install 'tfaccel\[report\]'"):
        run(str(path))
    assert not pathlib.Path(tmp_path / "report.html").exists()


def test_the_user_s_matplotlib_settings_stay_and_change_nothing(page):
    matplotlib = pytest.importorskip("matplotlib")
    plain = page()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        assert page() == plain
        assert dict(matplotlib.rcParams) == before
