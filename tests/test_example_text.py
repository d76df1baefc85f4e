"""The text example: where its texts are from, and a short training; and the examples' picture."""

import _picture
import numpy as np
import pytest
import text_classifier
from absl import flags
from absl.testing import flagsaver

from tfaccel import Outcome, Plan, Report, Speedup, Trial
from tfaccel.passes import XLA, FusedNorm


@pytest.fixture(autouse=True)
def _parsed():
    words = ["text_classifier.py", "--length=16", "--texts=16"]
    with flagsaver.flagsaver():
        flags.FLAGS(words)
        yield


def test_each_part_has_files_of_its_own_and_all_libraries(monkeypatch):
    read = []
    monkeypatch.setattr(
        text_classifier,
        "texts",
        lambda files, count, rng: read.append(files) or np.zeros((count, 16)),
    )
    parts = text_classifier.load_texts(0)
    for first, second, third in zip(*[iter(read)] * 3, strict=True):
        assert first and second and third
        assert len({*first, *second, *third}) == len(first) + len(second) + len(third)
    assert np.bincount(parts["train"][1]).tolist() == [16] * 4
    assert np.bincount(parts["test"][1]).tolist() == [8] * 4


def test_texts_are_bytes_of_the_files(tmp_path):
    (tmp_path / "a.py").write_text("import this  # and no more\n")
    found = text_classifier.texts([tmp_path / "a.py"], 5, np.random.default_rng(0))
    assert found.shape == (5, 16) and found.dtype == np.int32
    assert all(
        bytes(row.astype("uint8")).decode() in "import this  # and no more\n" for row in found
    )


def test_a_library_that_is_missing_is_named():
    with pytest.raises(SystemExit, match="no_such_library"):
        text_classifier.sources("no_such_library")


def test_a_short_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with flagsaver.flagsaver(epochs=1, compare=False):
        text_classifier.main(["text_classifier.py"])
    assert "Test accuracy" in capsys.readouterr().out
    assert (tmp_path / "texts.png").is_file()


def test_the_picture_has_a_bar_for_each_plan_that_was_timed(tmp_path):
    trials = (
        Trial(Plan(), Outcome.BASELINE, speedup=Speedup(1, 1, 1, 9)),
        Trial(Plan((FusedNorm(),)), Outcome.FASTER, speedup=Speedup(2, 1.5, 3, 9)),
        Trial(Plan((XLA(),)), Outcome.FAILED),
    )
    report = Report(plan=trials[1].plan, trials=trials)
    _picture.draw({"loss": [2.0, 1.0]}, report, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert "<!-- fused_norm -->" in drawn and "xla" not in drawn


def test_without_matplotlib_it_says_what_to_install(monkeypatch, capsys):
    def absent():
        raise ModuleNotFoundError("pip install 'tfaccel[report]'")

    monkeypatch.setattr(_picture, "load_matplotlib", absent)
    _picture.show({"loss": [1.0]}, None, "a.png")
    assert "tfaccel[report]" in capsys.readouterr().out
