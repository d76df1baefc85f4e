"""Programs as other people write them learn the same under `tfaccel run`."""

import pathlib
import runpy
import sys

import numpy as np
import pytest
from programs_run import ROOT, RUN, ended

PROGRAMS = sorted((pathlib.Path(__file__).parent / "programs").glob("*.py"))
# Programs that train without `fit`.
OWN_LOOPS = ("dcgan", "deep_q")
# Of losses, after some hundred steps that were rounded otherwise; and of the first loss.
TOLERANCE, SHARE = 0.05, 0.01


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_losses_are_those_without(program, tmp_path):
    environ = {"TFACCEL_CACHE_DIR": str(tmp_path), "TF_ENABLE_ONEDNN_OPTS": "0"}
    losses = []
    for words in ([str(program)], [*RUN, str(program)]):
        status, out, said = ended(words, tmp_path, environ=environ)
        assert status == 0, said
        losses.append([float(word) for word in out.split()])
    plain, under = losses
    assert plain[-1] < 0.7 * plain[0]  # it has learnt something
    own_loop = program.stem in OWN_LOOPS
    if own_loop:
        assert under == plain
    else:
        np.testing.assert_allclose(under, plain, rtol=TOLERANCE, atol=SHARE * plain[0])
    assert ("no `fit`" in said) == own_loop
    assert (" speedup " in said) != own_loop  # the closing table


@pytest.mark.slow
def test_steps_on_batches_are_accelerated_where_that_is_asked_for(tmp_path):
    program = str(PROGRAMS[0].with_name("deep_q.py"))
    environ = {"TFACCEL_CACHE_DIR": str(tmp_path), "TF_ENABLE_ONEDNN_OPTS": "0"}
    (_, plain, _), (status, under, said) = (
        ended(words, tmp_path, environ=environ)
        for words in ([program], [*RUN, "--on_batch", program])
    )
    assert status == 0, said
    losses = [[float(word) for word in out.split()] for out in (plain, under)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=TOLERANCE)
    assert "Sequential.train_on_batch" in said and "no `fit`" not in said


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_quickstart(whole, tmp_path, monkeypatch, capsys):
    """Whole it learns, by a search of its own; with little data it runs as it stands."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    if not whole:
        assert "4096" in text and "epochs=10" in text
        text = text.replace("4096", "256").replace("epochs=10", "epochs=2")
    script = tmp_path / "quickstart.py"
    script.write_text(text, encoding="utf-8")
    world = runpy.run_path(str(script))
    losses = world["model"].history.history["loss"]
    assert losses[-1] < losses[0]
    assert not whole or world["model"].history.history["val_accuracy"][-1] > 0.9
    assert world["accel"].report is not None
    assert "tfaccel: " in capsys.readouterr().out
    assert (tmp_path / "quickstart.png").is_file()


def test_predictions_are_saved_and_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict_and_export.py", str(tmp_path / "stripes")])
    world = runpy.run_path(str(ROOT / "examples" / "predict_and_export.py"))
    assert world["model"].history.history["accuracy"][-1] > 0.9
    images = world["images"]
    assert (tmp_path / "stripes.png").is_file()
    expected = world["model"].predict(images, verbose=0)
    np.testing.assert_allclose(world["after"], expected, atol=0.02)
    assert capsys.readouterr().out.endswith("as before: True\n")
