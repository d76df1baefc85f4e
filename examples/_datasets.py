"""The example's data: images and labels, split, scaled and of one size."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

import tfaccel

try:
    from sklearn.datasets import load_digits
except ImportError:  # It comes with tfaccel[examples]; every other dataset does without it.
    load_digits = None

Arrays = Mapping[str, np.ndarray]

# The smallest side that three 2x2 poolings leave something of.
MIN_IMAGE_SIZE = 8
_KEYS = ("x_train", "y_train", "x_test", "y_test")
_VALIDATION_SHARE = 0.1
_DIGITS_TEST_SHARE = 0.2
# The split of the digits is a property of the dataset, so no flag changes it.
_DIGITS_SPLIT_SEED = 0


class DatasetError(ValueError):
    """The data can't be used; the message says why, in one line."""


@dataclasses.dataclass(frozen=True)
class Images:
    """A classification dataset in memory, ready for `model.fit`.

    Attributes:
        name: what it is called.
        train, validation, test: pairs of float32 images of shape
            (samples, height, width, channels) and int64 labels.
        classes: the number of classes.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: int

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image."""
        return self.train[0].shape[1:]

    def __str__(self) -> str:
        sizes = f"{len(self.train[0])} + {len(self.validation[0])} + {len(self.test[0])}"
        shape = "x".join(map(str, self.image_shape))
        return f"{self.name}: {sizes} images (train + validation + test) of {shape}"


def _digits() -> Arrays:
    if load_digits is None:
        raise DatasetError(
            "The digits come with scikit-learn, which is not installed. "
            "Install it with: pip install 'tfaccel[examples]'"
        )
    bunch = load_digits()
    order = np.random.default_rng(_DIGITS_SPLIT_SEED).permutation(len(bunch.target))
    # Pixels are 0 to 16 there.
    images, labels = (bunch.images[order] / 16).astype(np.float32), bunch.target[order]
    cut = round(len(order) * _DIGITS_TEST_SHARE)
    return dict(zip(_KEYS, (images[cut:], labels[cut:], images[:cut], labels[:cut]), strict=True))


def _downloaded(load: Callable) -> Callable[[], Arrays]:
    def arrays() -> Arrays:
        try:
            (x_train, y_train), (x_test, y_test) = load()
        except Exception as error:  # Keras raises a bare Exception where a download fails.
            raise DatasetError(f"The dataset can't be downloaded: {error}") from error
        return dict(zip(_KEYS, (x_train, y_train, x_test, y_test), strict=True))

    return arrays


SOURCES: Mapping[str, Callable[[], Arrays]] = {
    "digits": _digits,
    "cifar10": _downloaded(keras.datasets.cifar10.load_data),
    "fashion_mnist": _downloaded(keras.datasets.fashion_mnist.load_data),
}


def read_file(path: pathlib.Path) -> Arrays:
    """The four arrays of an .npz file.

    Raises:
        DatasetError: the file can't be read or lacks one of the four.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, Mapping):
            raise DatasetError(f"{path} must be an .npz archive. Received: a single array")
        with archive:
            arrays = {key: archive[key] for key in archive if key in _KEYS}
            held = ", ".join(archive) or "nothing"
    except DatasetError:
        raise
    except Exception as error:  # Zip, header and pickle errors have no common type.
        raise DatasetError(f"{path} can't be read as an .npz archive: {error}") from error
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise DatasetError(
            f"{path} must hold the arrays {', '.join(_KEYS)}. "
            f"Missing: {', '.join(missing)}. Received: {held}"
        )
    return arrays


def _images(key: str, images: np.ndarray) -> np.ndarray:
    """The images as float32 with a channel axis; uint8 becomes 0 to 1."""
    if images.ndim not in (3, 4):
        raise DatasetError(
            f"`{key}` must have the shape (samples, height, width) or "
            f"(samples, height, width, channels). Received: shape {images.shape}"
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DatasetError(
            f"`{key}` must be uint8 (0 to 255) or floating point. Received: dtype {images.dtype}"
        )
    scaled = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    return scaled[..., None] if scaled.ndim == 3 else scaled


def _checked(
    part: str, images: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images and the labels, as int64, of which none is faulty."""
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(labels),), (len(labels), 1)):
        raise DatasetError(
            f"`y_{part}` must be integers (class indices), one for each image. "
            f"Received: shape {labels.shape}, dtype {labels.dtype}"
        )
    labels = labels.reshape(-1).astype(np.int64)
    shape = (None, None, images.shape[-1])
    findings = tfaccel.data.check((images, labels), tfaccel.data.Rules(shape, classes=classes))
    if not findings.ok:
        fault = findings.faults[0]
        raise DatasetError(f"`x_{part}` and `y_{part}`: {fault.where}: {fault.reason}")
    return images, labels


def _resized(images: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or images.shape[1:3] == (size, size):
        return images
    # On the CPU and in pieces, so that a large set needs no large tensor.
    with tf.device("/CPU:0"):
        parts = np.array_split(images, max(1, len(images) // 1024))
        return np.concatenate([tf.image.resize(part, (size, size)).numpy() for part in parts])


def prepare(name: str, arrays: Arrays, image_size: int | None = None, seed: int = 0) -> Images:
    """Checks the arrays, resizes the images, and splits validation data off.

    Args:
        name: what to call the dataset.
        arrays: `x_train`, `y_train`, `x_test`, `y_test`.
        image_size: the side that images are resized to; None keeps theirs.
        seed: decides which training images become validation data.

    Raises:
        DatasetError: an array breaks a rule; the message names both.
    """
    x_train, x_test = (_images(key, arrays[key]) for key in ("x_train", "x_test"))
    present = np.unique(arrays["y_train"])
    if not np.array_equal(present, np.arange(len(present))):
        raise DatasetError(
            "`y_train` must number its classes 0, 1, 2, ... without a gap. "
            f"Received: {', '.join(map(str, present[:20]))}"
        )
    classes = len(present)
    x_train, y_train = _checked("train", x_train, arrays["y_train"], classes)
    x_test, y_test = _checked("test", x_test, arrays["y_test"], classes)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DatasetError(
            f"`x_test` must hold images like those of `x_train`, of shape {x_train.shape[1:]}. "
            f"Received: {x_test.shape[1:]}"
        )
    if image_size is None and min(x_train.shape[1:3]) < MIN_IMAGE_SIZE:
        raise DatasetError(
            f"`x_train` must hold images of {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE} or larger. "
            f"Received: shape {x_train.shape}. --image_size resizes them"
        )
    held_back = max(1, round(len(x_train) * _VALIDATION_SHARE))
    if held_back >= len(x_train):
        raise DatasetError(f"`x_train` must hold two images or more. Received: {len(x_train)}")
    order = np.random.default_rng(seed).permutation(len(x_train))
    x_train, x_test = _resized(x_train, image_size), _resized(x_test, image_size)
    train, validation = order[held_back:], order[:held_back]
    return Images(
        name,
        (x_train[train], y_train[train]),
        (x_train[validation], y_train[validation]),
        (x_test, y_test),
        classes,
    )
