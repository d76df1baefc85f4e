"""WAV files for tests."""

import wave

import numpy as np


def write_wav(path, samples=None, rate_hz=8000, channels=1, sample_bytes=2):
    """Writes int16 samples, by default a tenth of a second of noise, and gives them."""
    if samples is None:
        seed = sum(map(ord, path.name))
        samples = np.random.default_rng(seed).integers(-9999, 9999, rate_hz // 10 * channels)
    samples = np.asarray(samples, "<i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as writer:
        writer.setparams((channels, sample_bytes, rate_hz, 0, "NONE", ""))
        writer.writeframes(samples.tobytes())
    return samples
