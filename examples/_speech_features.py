"""The speech example's input pipeline: recordings to windows to spectrograms, by tf.data."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from _speech_data import Recordings
from _wav_files import WavFile

# A frame is as long as two or three periods of a low voice, and a new one begins at its half.
_FRAME_SECONDS, _HOP_SECONDS = 0.032, 0.016
# Telephone speech begins at 300 Hz, a low voice at 60; above 7.6 kHz there is little speech.
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7600.0
_MEL_BINS, _MFCCS = 40, 20
# Of a window whose peak is 1; what is quieter than that is silence.
_FLOOR = 1e-2
# Recordings of training are moved by up to a tenth of the window.
_SHIFT_SHARE = 0.1
# Windows up to that many bytes in all are kept in memory once read.
_CACHED_BYTES = 512 * 2**20
_FULL_SCALE = 32768.0


@dataclasses.dataclass(frozen=True)
class Frontend:
    """What the network hears of a recording: a window of it as log-mel bands or MFCCs.

    Source: Davis and Mermelstein, 1980 (https://doi.org/10.1109/TASSP.1980.1163420), in
    the form of https://www.tensorflow.org/api_docs/python/tf/signal/mfccs_from_log_mel_spectrograms
    """

    rate_hz: int  # samples a second
    kind: str = "log_mel"  # `"log_mel"` (40 bands) or `"mfcc"` (20 coefficients)
    # The window's length. Longer recordings lose both ends, shorter ones get silence before and
    # behind them.
    seconds: float = 1.0

    @property
    def samples(self) -> int:
        """The window's length in samples."""
        return round(self.seconds * self.rate_hz)

    @property
    def frame(self) -> int:
        """Samples in a frame."""
        return round(_FRAME_SECONDS * self.rate_hz)

    @property
    def hop(self) -> int:
        """Samples between the beginnings of two frames."""
        return round(_HOP_SECONDS * self.rate_hz)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, bands or coefficients, and 1: what the network is given."""
        frames = 1 + (self.samples - self.frame) // self.hop
        return frames, _MFCCS if self.kind == "mfcc" else _MEL_BINS, 1

    @property
    def _fft_length(self) -> int:
        # Twice as fine as the frame gives, or the lowest bands would have no frequency.
        return 2 ** (2 * self.frame - 1).bit_length()

    def window(self, sound: tf.Tensor) -> tf.Tensor:
        """The middle of a sound: int16 of shape (any,) to int16 of shape (samples,)."""
        excess = tf.maximum(tf.size(sound) - self.samples, 0)
        middle = sound[excess // 2 : excess // 2 + self.samples]
        missing = self.samples - tf.size(middle)
        padded = tf.pad(middle, [[missing // 2, missing - missing // 2]])
        return tf.ensure_shape(padded, (self.samples,))

    def features(self, windows: tf.Tensor) -> tf.Tensor:
        """int16 (batch, samples) to float32 (batch, *shape), of mean 0 and deviation 1 each."""
        sound = tf.cast(windows, tf.float32) / _FULL_SCALE
        sound /= tf.reduce_max(tf.abs(sound), axis=-1, keepdims=True) + 1 / _FULL_SCALE
        spectrum = tf.abs(tf.signal.stft(sound, self.frame, self.hop, self._fft_length))
        bands = tf.signal.linear_to_mel_weight_matrix(
            _MEL_BINS,
            self._fft_length // 2 + 1,
            self.rate_hz,
            _LOWEST_HZ,
            min(_HIGHEST_HZ, self.rate_hz / 2),
        )
        found = tf.math.log(tf.linalg.matmul(spectrum, bands) + _FLOOR)
        if self.kind == "mfcc":
            found = tf.signal.mfccs_from_log_mel_spectrograms(found)[..., :_MFCCS]
        mean = tf.reduce_mean(found, axis=(1, 2), keepdims=True)
        deviation = tf.math.reduce_std(found, axis=(1, 2), keepdims=True)
        # Silence has a deviation of 0, and stays 0.
        return ((found - mean) / (deviation + 1e-3))[..., tf.newaxis]


def shifted(windows: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Each window moved by up to a tenth to either side, with silence where nothing was.

    Args:
        windows: int16, (batch, samples).
        seed: two integers; the same ones move the windows alike.
    """
    count, samples = tf.shape(windows)[0], windows.shape[1]
    most = round(_SHIFT_SHARE * samples)
    padded = tf.pad(windows, [[0, 0], [most, most]])
    starts = tf.random.stateless_uniform((count,), seed, 0, 2 * most + 1, tf.int32)
    return tf.gather(padded, starts[:, tf.newaxis] + tf.range(samples), axis=1, batch_dims=1)


def _read(path: tf.Tensor, offset: tf.Tensor, byte_count: tf.Tensor, channels: tf.Tensor):
    """A file's samples, int16 of shape (any,): the mean of its channels."""
    content = tf.strings.substr(tf.io.read_file(path), offset, byte_count)
    samples = tf.reshape(tf.io.decode_raw(content, tf.int16), (-1, channels))
    return tf.cast(tf.reduce_mean(tf.cast(samples, tf.float32), axis=1), tf.int16)


def _sounds(sounds: Sequence[WavFile] | Sequence[np.ndarray]) -> tf.data.Dataset:
    """The samples of each recording, or what they can be read by."""
    if isinstance(sounds[0], np.ndarray):
        return tf.data.Dataset.from_tensor_slices(tf.ragged.stack([*sounds]))
    columns = [(s.path, s.offset, s.byte_count, s.channels) for s in sounds]
    return tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*columns, strict=True))))


def pipeline(
    recordings: Recordings,
    indices: np.ndarray,
    frontend: Frontend,
    batch_size: int,
    shuffle_seed: int | None = None,
) -> tf.data.Dataset:
    """Batches of features and labels.

    Args:
        recordings: what to take from.
        indices: which of them.
        frontend: makes the features.
        batch_size: recordings in a batch.
        shuffle_seed: decides the order, another one each epoch, and how windows are
            moved. None keeps the order and moves nothing.
    """
    is_cached = 2 * len(indices) * frontend.samples <= _CACHED_BYTES
    sounds = _sounds([recordings.sounds[index] for index in indices])
    labels = tf.data.Dataset.from_tensor_slices(recordings.labels[indices])
    dataset = tf.data.Dataset.zip((sounds, labels))

    def shuffle(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset if shuffle_seed is None else dataset.shuffle(len(indices), shuffle_seed)

    def window(sound, label):
        samples = _read(*sound) if isinstance(sound, tuple) else sound
        return frontend.window(samples), label

    if not is_cached:  # then paths are shuffled, which are smaller than windows
        dataset = shuffle(dataset)
    dataset = dataset.map(window, tf.data.AUTOTUNE, deterministic=True)
    if is_cached:
        dataset = shuffle(dataset.cache())
    dataset = dataset.batch(batch_size)
    if shuffle_seed is None:
        dataset = dataset.map(lambda w, label: (frontend.features(w), label), tf.data.AUTOTUNE)
        return dataset.cache().prefetch(2) if is_cached else dataset.prefetch(2)
    seeds = tf.data.Dataset.random(shuffle_seed, rerandomize_each_iteration=True).batch(2)
    return (
        tf.data.Dataset.zip((dataset, seeds))
        .map(lambda pair, s: (frontend.features(shifted(pair[0], s)), pair[1]), tf.data.AUTOTUNE)
        .prefetch(2)
    )
