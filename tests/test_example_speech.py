"""The speech example: its features against NumPy, its pipeline, and short trainings."""

import dataclasses
import pathlib

import _confusion
import _networks
import _speech_data
import _speech_features
import keras
import numpy as np
import pytest
import speech_classifier
import tensorflow as tf
from _speech_data import Recordings, from_folder
from _speech_features import Frontend, pipeline, shifted
from absl import flags
from absl.testing import flagsaver
from sounds import write_wav

# The Free Spoken Digit Dataset, where it lies beside the repository; it is not part of it.
FSDD = pathlib.Path(__file__).parents[2] / "shared" / "data" / "fsdd" / "recordings"


def mel(hertz):
    """The scale of HTK, which tf.signal uses: http://htk.eng.cam.ac.uk, 5.4."""
    return 1127 * np.log1p(np.asarray(hertz) / 700)


def reference_bands(window, rate_hz):
    """Log-mel bands of a window by their definition, in float64."""
    sound = window / 32768
    sound = sound / (np.abs(sound).max() + 1 / 32768)
    frame, hop = round(0.032 * rate_hz), round(0.016 * rate_hz)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)
    frames = [sound[i : i + frame] * hann for i in range(0, len(sound) - frame + 1, hop)]
    length = 2 * frame
    spectrum = np.abs(np.fft.rfft(frames, length))
    edges = np.linspace(mel(60), mel(min(7600, rate_hz / 2)), 42)
    places = mel(np.arange(length // 2 + 1) * rate_hz / length)[:, np.newaxis]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (places - low) / (middle - low), (high - places) / (high - middle)
    return np.log(spectrum @ np.maximum(0, np.minimum(rising, falling)) + 1e-2)


def reference(window, frontend):
    """What `Frontend.features` gives for one window."""
    found = reference_bands(window.astype(np.float64), frontend.rate_hz)
    if frontend.kind == "mfcc":
        k, n = np.arange(20)[:, np.newaxis], np.arange(40)
        cosines = np.cos(np.pi * k * (2 * n + 1) / 80)
        # As HTK scales it.
        found = np.sqrt(2 / 40) * found @ cosines.T
    return ((found - found.mean()) / (found.std() + 1e-3))[..., np.newaxis]


@pytest.mark.parametrize("kind", ["log_mel", "mfcc"])
@pytest.mark.parametrize("rate_hz", [8000, 16000])
def test_features_are_their_definition(rng, kind, rate_hz):
    frontend = Frontend(rate_hz, kind, seconds=0.4)
    loudness = rng.uniform(1, 9000, (5, 1))
    windows = (rng.standard_normal((5, frontend.samples)).cumsum(axis=1) % 3 - 1) * loudness
    windows = windows.astype(np.int16)
    windows[4, 800:] = 0
    found = frontend.features(tf.constant(windows)).numpy()
    assert found.shape == (5, *frontend.shape)
    assert found.dtype == np.float32
    for window, features in zip(windows, found, strict=True):
        np.testing.assert_allclose(features, reference(window, frontend), atol=2e-3)


def test_the_shape_that_a_second_has():
    assert Frontend(8000).shape == Frontend(16000).shape == (61, 40, 1)
    assert Frontend(8000, "mfcc").shape == (61, 20, 1)


def test_silence_is_silent():
    frontend = Frontend(8000)
    found = frontend.features(tf.zeros((2, frontend.samples), tf.int16)).numpy()
    np.testing.assert_allclose(found, 0, atol=1e-2)


@pytest.mark.parametrize(
    ("length", "begin", "end"), [(8, 0, 8), (5, 1, 6), (1, 3, 4), (11, -1, 10), (12, -2, 10)]
)
def test_the_window_is_the_middle(length, begin, end):
    sound = np.arange(1, length + 1, dtype=np.int16)
    found = Frontend(8, seconds=1.0).window(tf.constant(sound)).numpy()
    expected = np.zeros(8, np.int16)
    expected[max(0, begin) : min(8, end)] = sound[max(0, -begin) :][: min(8, end) - max(0, begin)]
    np.testing.assert_array_equal(found, expected)


def test_windows_are_moved_by_a_tenth_at_most(rng):
    windows = rng.integers(1, 99, (64, 40), np.int16)
    found = shifted(tf.constant(windows), tf.constant([3, 4], tf.int64)).numpy()
    padded = np.pad(windows, ((0, 0), (4, 4)))
    moves = set()
    for row, moved in zip(padded, found, strict=True):
        moves |= {begin for begin in range(9) if np.array_equal(row[begin : begin + 40], moved)}
    assert moves == set(range(9))
    again = shifted(tf.constant(windows), tf.constant([3, 4], tf.int64))
    np.testing.assert_array_equal(found, again)


@pytest.fixture
def recordings(tmp_path):
    """Twelve takes of two words by one speaker, one of them in stereo."""
    for word in ("no", "yes"):
        for take in range(12):
            write_wav(tmp_path / "takes" / f"{word}_ann_{take}.wav")
    write_wav(tmp_path / "takes" / "no_ann_7.wav", channels=2)
    return from_folder(tmp_path / "takes")


FRONTEND = Frontend(8000, seconds=0.2)


def samples_of(path, channels):
    content = np.frombuffer(pathlib.Path(path).read_bytes()[44:], "<i2")
    return np.trunc(content.reshape(-1, channels).mean(axis=1)).astype(np.int16)


def test_batches_hold_the_features_of_the_files(recordings):
    everything = np.arange(len(recordings.sounds))
    batches = list(pipeline(recordings, everything, FRONTEND, 10).as_numpy_iterator())
    assert [len(labels) for _, labels in batches] == [10, 10, 4]
    np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]), recordings.labels)
    found = np.concatenate([b[0] for b in batches])
    assert {sound.channels for sound in recordings.sounds} == {1, 2}
    for sound, features in zip(recordings.sounds, found, strict=True):
        window = FRONTEND.window(tf.constant(samples_of(sound.path, sound.channels))).numpy()
        np.testing.assert_allclose(features, reference(window, FRONTEND), atol=2e-3)


def epochs(recordings, seed, count=2):
    dataset = pipeline(recordings, recordings.train, FRONTEND, 4, seed)
    return [list(dataset.as_numpy_iterator()) for _ in range(count)]


@pytest.mark.parametrize(
    "cached_bytes",
    [0, pytest.param(2**20, marks=pytest.mark.slow)],
    ids=["streamed", "cached"],
)
def test_training_order_follows_the_seed(recordings, monkeypatch, cached_bytes):
    monkeypatch.setattr(_speech_features, "_CACHED_BYTES", cached_bytes)
    first, again, other = (epochs(recordings, seed) for seed in (5, 5, 6))
    for left, right in zip(first, again, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a[0], b[0])
            np.testing.assert_array_equal(a[1], b[1])
    # Another order and other shifts: in the next epoch, and from another seed.
    assert not np.array_equal(first[0][0][0], first[1][0][0])
    assert not np.array_equal(first[0][0][0], other[0][0][0])
    for epoch in (*first, *other):
        labels = np.concatenate([labels for _, labels in epoch])
        assert sorted(labels) == sorted(recordings.labels[recordings.train])


def test_sounds_in_memory_are_as_sounds_in_files(recordings):
    sounds = [samples_of(sound.path, sound.channels) for sound in recordings.sounds]
    in_memory = dataclasses.replace(recordings, sounds=sounds)
    for left, right in zip(epochs(recordings, 1), epochs(in_memory, 1), strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a[0], b[0])


@pytest.mark.parametrize(
    "network",
    [
        _networks.speech_cnn,
        lambda *shape: _networks.speech_recurrent(*shape, keras.layers.LSTM),
        lambda *shape: _networks.speech_recurrent(*shape, keras.layers.GRU),
    ],
    ids=["cnn", "lstm", "gru"],
)
def test_networks_take_the_features(recordings, network):
    model = network(FRONTEND.shape, 2)
    features, _ = next(iter(pipeline(recordings, recordings.test, FRONTEND, 4)))
    scores = model(features).numpy()
    assert scores.shape == (4, 2)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


def test_confusion_counts_rows_of_truth():
    matrix = _confusion.confusion(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 0, 2]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    said = _confusion.most_confused(matrix, ("no", "up", "yes"))
    assert said == "The most frequent mistake: yes taken for no, 2 of 3."
    assert _confusion.most_confused(np.eye(2, dtype=int), ("no", "yes")) == "No mistakes."


def test_the_picture_is_drawn(tmp_path):
    matrix = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 9]])
    _confusion.draw(matrix, ("no", "up", "yes"), tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert "80.0% of 15 right" in drawn
    assert drawn.count("<!-- yes -->") == 2


def call(*words):
    """Runs the example with these flags, in this process."""
    with flagsaver.flagsaver():
        speech_classifier.main(flags.FLAGS(["speech_classifier.py", *map(str, words)])[:1])


@pytest.mark.parametrize("compare", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_short_training_from_a_folder(compare, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone = np.sin(np.arange(1600) * np.array([[0.3], [1.2]])) * 5000
    for word, sound in zip(("low", "high"), tone, strict=True):
        for take in range(30):
            noise = np.random.default_rng(take).normal(0, 300, 1600)
            write_wav(tmp_path / "tones" / f"{word}_ann_{take}.wav", sound + noise)
    picture = tmp_path / "confusion.png"
    call(
        f"--data_dir={tmp_path / 'tones'}", "--epochs=6", "--seconds=0.3", "--batch_size=8",
        f"--compare={compare}", f"--confusion_file={picture}",
        f"--profile_dir={tmp_path / 'run'}",
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "tones: 45 + 5 + 10 recordings" in said
    assert said.count("Test accuracy: 1.0000") == 1 + compare
    assert "recordings/s" in said
    assert "No mistakes." in said
    assert picture.stat().st_size > 1000
    assert (tmp_path / "tones.png").is_file()
    assert (tmp_path / "run" / "profile.jsonl").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data_dir=x", "--dataset=spoken_digits"], "--dataset and --data_dir exclude"),
        (["--words=one,eleven"], "The spoken digits: no recordings of eleven"),
        (["--split=take"], "--split must be speaker for spoken_digits"),
        (["--data_dir=nowhere"], "There is no folder nowhere"),
        (["--confusion_file=nowhere/c.png"], "--confusion_file must lie in a folder"),
    ],
)
def test_what_the_flags_may_not_be(words, message):
    with pytest.raises(SystemExit) as caught:
        call(*words)
    assert message in str(caught.value)


def test_a_bad_file_ends_the_example_with_its_name(tmp_path):
    for take in range(8):
        write_wav(tmp_path / f"yes_ann_{take}.wav")
    (tmp_path / "no_ann_0.wav").write_bytes(b"RIFF")
    with pytest.raises(SystemExit, match="no_ann_0.wav: its header is cut off or damaged"):
        call(f"--data_dir={tmp_path}")


def learned(recordings: Recordings, *words) -> float:
    """Test accuracy of the training that the flags ask for."""
    with flagsaver.flagsaver():
        flags.FLAGS(["speech_classifier.py", *words])
        task = speech_classifier.make_task(recordings)
        data, model = task.data(0, None), task.build(0)
        model.fit(**data.fit, epochs=speech_classifier._example.choose_epochs(task, 0), verbose=0)
        return model.evaluate(**data.test, verbose=0, return_dict=True)["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "lstm", "gru"])
def test_words_of_voices_never_heard_are_learned(name):
    # Guessing gets 0.1.
    assert learned(_speech_data.spoken_digits(), f"--model={name}", "--epochs=25") > 0.6


@pytest.mark.slow
@pytest.mark.skipif(not FSDD.is_dir(), reason="the recordings are not there")
def test_real_recordings_are_learned():
    assert learned(from_folder(FSDD), "--epochs=12") > 0.95
