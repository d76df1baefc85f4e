"""What a fit that tries nothing tells of the passes that don't serve it."""

import keras
import numpy as np

import tfaccel
from tfaccel.measure.outcome import Outcome


def test_a_fit_without_trials_says_which_passes_refuse(capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    accel = tfaccel.AccelCallback(tuning="full", max_tuning_seconds=0, cache_dir=False)
    x, y = np.ones((40, 4)), np.ones((40, 1))
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[accel])

    refused = [t for t in accel.report.trials if t.outcome is Outcome.IRRELEVANT]
    assert "fused_rnn" in [str(trial.plan) for trial in refused]
    assert any(line.startswith("fused_rnn:") for line in accel.report.reasons())
    # It has nothing to show in a table, and the reasons are for who asks.
    assert "verdict" not in capsys.readouterr().out
