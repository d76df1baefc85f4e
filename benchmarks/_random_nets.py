"""Networks with random weights whose outputs differ from sample to sample, and images for them."""

import keras
import numpy as np

# Stripes of each sample.
_PATCHES = 7


def images(shape: tuple[int, ...], seed: int, high: float = 1.0) -> np.ndarray:
    """Samples that differ; noise alone looks the same everywhere, so they have large patches.

    Args:
        shape: samples, and the shape of one.
        seed: one seed gives one array.
        high: the largest value.
    """
    random = np.random.default_rng(seed)
    noise = random.random(shape, dtype=np.float32)
    patches = random.random((shape[0], _PATCHES, *[1] * (len(shape) - 2)), dtype=np.float32)
    patches = np.repeat(patches, -(-shape[1] // _PATCHES), axis=1)[:, : shape[1]]
    return noise * patches * np.float32(high)


def calibrated(model: keras.Model, x: np.ndarray) -> keras.Model:
    """Gives BatchNormalization the statistics of a batch, and weights of some spread."""
    random = np.random.default_rng(1)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.gamma is not None:
            norm.gamma.assign(random.uniform(0.8, 1.3, norm.gamma.shape))
        norm.beta.assign(random.uniform(-0.2, 0.2, norm.beta.shape))
        norm.momentum = 0.0
    if norms:
        model(x, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def spread(logits: np.ndarray) -> float:
    """How much outputs differ, relatively: from sample to sample, of one from class to class."""
    centred = logits - logits.mean(axis=0 if len(logits) > 1 else -1, keepdims=True)
    return float(np.linalg.norm(centred) / np.linalg.norm(logits))
