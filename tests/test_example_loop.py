"""The example of a training loop of one's own."""

import custom_loop
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver


def call(*words):
    with flagsaver.flagsaver():
        rest = flags.FLAGS(["custom_loop.py", *words])
        custom_loop.main(rest)


def test_it_trains_and_shows_what_it_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call("--steps=6", "--images=8")
    shown = capsys.readouterr().out
    assert "6 generator_loss" in shown
    assert (tmp_path / "discs.png").is_file()
    assert "too short" in shown
    assert all(len(line) == 16 for line in shown.splitlines()[-16:])


def test_it_takes_no_other_arguments():
    with pytest.raises(SystemExit, match="flags only"):
        call("7")


def test_the_images_are_discs():
    images = custom_loop.discs(5)
    assert images.shape == (5, 16, 16, 1) and images.dtype == np.float32
    assert np.all(images.max(axis=(1, 2, 3)) == 1) and images.min() == 0
