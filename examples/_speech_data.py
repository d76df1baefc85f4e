"""The speech example's data: recordings of words, and which of them train and test."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import keras
import numpy as np
from _wav_files import RecordingError, WavFile, files_of, parts_of_name, read_headers

EMBEDDED = pathlib.Path(__file__).parent / "data" / "spoken_digits.npz"
# The Free Spoken Digit Dataset's test split: https://github.com/Jakobovski/free-spoken-digit-dataset
_TEST_TAKES = 5
_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1
# The test data are a property of the dataset, so no flag changes them.
_TEST_SEED = 0
# Speech Commands (https://arxiv.org/abs/1804.03209), second version: its lists of files, what
# stands behind the speaker in a file's name, and its folder of mere noise.
COMMANDS_URL = (
    "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
)
_VALIDATION_LIST, _TEST_LIST = "validation_list.txt", "testing_list.txt"
_SPEAKER_END = "_nohash_"
_NOISE_FOLDER = "_background_noise_"
# mu of mu-law, as data/make_spoken_digits.py packs by it.
_MU = 255

Sounds = Sequence[WavFile] | Sequence[np.ndarray]
# Which recordings validate and which test.
_Masks = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Recordings of words, and which of them train, validate and test.

    Attributes:
        name: what they are called.
        sounds: files, or int16 vectors.
        labels: int64, an index into `label_names` for each.
        label_names: the words, in alphabetical order.
        rate_hz: samples a second, in all of them.
        train, validation, test: int64 indices of recordings.
    """

    name: str
    sounds: Sounds
    labels: np.ndarray
    label_names: tuple[str, ...]
    rate_hz: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __str__(self) -> str:
        sizes = " + ".join(str(len(part)) for part in (self.train, self.validation, self.test))
        words = f"{len(self.label_names)} words at {self.rate_hz} Hz"
        return f"{self.name}: {sizes} recordings (train + validation + test) of {words}"


@dataclasses.dataclass(frozen=True)
class _Found:
    """Recordings before they are split."""

    name: str  # what they are called
    sounds: Sounds  # as in `Recordings`
    words: np.ndarray  # what is said in each
    speakers: np.ndarray  # who says it; empty strings where that isn't known
    takes: np.ndarray  # the number of each among its speaker's recordings of the word, or -1
    rate_hz: int  # samples a second

    def split(self, masks: _Masks) -> Recordings:
        """The recordings with parts; a RecordingError where one is of no use."""
        label_names, labels = np.unique(self.words, return_inverse=True)
        if len(label_names) < 2:
            raise RecordingError(f"{self.name} must hold two words or more. Received: {self.words}")
        is_validation, is_test = masks
        parts = [np.flatnonzero(m) for m in (~(is_validation | is_test), is_validation, is_test)]
        for part, indices in zip(("training", "validation", "testing"), parts, strict=True):
            if not len(indices):
                raise RecordingError(f"{self.name} leaves no recordings for {part}.")
        untaught = np.setdiff1d(np.arange(len(label_names)), labels[parts[0]])
        if len(untaught):
            raise RecordingError(
                f"{self.name} leaves no recordings of {label_names[untaught[0]]} for training."
            )
        names = tuple(map(str, label_names))
        return Recordings(
            self.name, self.sounds, labels.astype(np.int64), names, self.rate_hz, *parts
        )


def _chosen(name: str, said: np.ndarray, words: Sequence[str] | None) -> np.ndarray:
    """The indices of recordings of `words`; of all of them where it is None."""
    absent = sorted(set(words or ()) - set(said))
    if absent:
        raise RecordingError(f"{name}: no recordings of {', '.join(absent)}")
    return np.flatnonzero(np.isin(said, words)) if words else np.arange(len(said))


def _held_out(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A mask of the members of whole groups, which make up a share of all, and one at least."""
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    return np.isin(groups, names[: max(1, round(share * len(names)))])


def _masks(found: _Found, by: str, seed: int) -> _Masks:
    """Which recordings validate and which test, where no list says so."""
    # What must not be torn apart: a speaker's recordings, or each recording by itself.
    groups = found.speakers if by == "speaker" else np.arange(len(found.words))
    if by == "take":
        is_test = found.takes < _TEST_TAKES
    else:
        is_test = _held_out(groups, _TEST_SHARE, _TEST_SEED)
    is_validation = np.zeros(len(is_test), bool)
    if not is_test.all():
        is_validation[~is_test] = _held_out(groups[~is_test], _VALIDATION_SHARE, seed)
    return is_validation, is_test


def _listed(folder: pathlib.Path, sounds: Sequence[WavFile]) -> _Masks | None:
    """The masks of the folder's own lists; None where it has none."""
    lists = [folder / name for name in (_VALIDATION_LIST, _TEST_LIST)]
    if not all(path.is_file() for path in lists):
        return None
    names = [pathlib.Path(sound.path).relative_to(folder).as_posix() for sound in sounds]
    first, second = (set(path.read_text(encoding="utf-8").split()) for path in lists)
    return np.array([name in first for name in names]), np.array([name in second for name in names])


def _found_in(folder: pathlib.Path, words: Sequence[str] | None) -> _Found:
    is_nested, paths = files_of(folder)
    if is_nested:
        paths = [path for path in paths if path.parent.name != _NOISE_FOLDER]
        ends = [path.stem.partition(_SPEAKER_END) for path in paths]
        rows = [
            (path.parent.name, speaker if mark else "", -1)
            for path, (speaker, mark, _) in zip(paths, ends, strict=True)
        ]
    else:
        rows = [parts_of_name(path) for path in paths]
    said, speakers, takes = map(np.array, zip(*rows, strict=True))
    chosen = _chosen(str(folder), said, words)
    sounds = read_headers([paths[index] for index in chosen])
    parts = (said[chosen], speakers[chosen], takes[chosen])
    return _Found(folder.name, sounds, *parts, sounds[0].rate_hz)


def _usual_split(found: _Found) -> str:
    """What to hold out where neither the caller nor a list says it."""
    if (found.takes >= 0).all():
        return "take"
    return "speaker" if all(found.speakers) else "recording"


def from_folder(
    folder: str | os.PathLike[str],
    words: Sequence[str] | None = None,
    by: str | None = None,
    seed: int = 0,
) -> Recordings:
    """The recordings of a folder, after a look at every file's header.

    Args:
        folder: holds files `{label}_{speaker}_{index}.wav`, or a folder for each word.
        words: the words to use; None for all.
        by: what is held out for testing: `"take"`, the first five recordings of each word
            by each speaker, as in the Free Spoken Digit Dataset; `"speaker"`, a fifth of
            the speakers; `"recording"`, a fifth of the recordings. None follows the
            folder's own lists (Speech Commands has such), else takes the first of the
            three that the files' names allow.
        seed: decides which of the remaining recordings validate.

    Raises:
        RecordingError: there is nothing to use, or files can't be used; the message says
            which and why.
    """
    folder = pathlib.Path(folder)
    found = _found_in(folder, words)
    if by == "take" and (found.takes < 0).any():
        raise RecordingError(f"{folder} must have numbered recordings to be split by take.")
    if by == "speaker" and not all(found.speakers):
        raise RecordingError(f"{folder} must name the speakers to be split by speaker.")
    masks = _listed(folder, found.sounds) if by is None else None
    return found.split(masks or _masks(found, by or _usual_split(found), seed))


def speech_commands(
    words: Sequence[str] | None = None,
    by: str | None = None,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Recordings:
    """Speech Commands, downloaded once (2.3 GiB) into Keras's folder or `cache_dir`.

    Keras unpacks it at each call; `from_folder` on what it unpacked doesn't.

    Raises:
        RecordingError: it can't be had, or files can't be used.
    """
    name = COMMANDS_URL.rpartition("/")[2]
    place = None if cache_dir is None else str(cache_dir)
    try:
        folder = keras.utils.get_file(name, COMMANDS_URL, extract=True, cache_dir=place)
    except Exception as error:  # Keras raises a bare Exception where a download fails.
        raise RecordingError(f"Speech Commands can't be downloaded: {error}") from error
    return dataclasses.replace(from_folder(folder, words, by, seed), name="Speech Commands")


def spoken_digits(words: Sequence[str] | None = None, seed: int = 0) -> Recordings:
    """The repository's own recordings, tested on voices that are not trained on.

    Raises:
        RecordingError: they lack one of `words`.
    """
    with np.load(EMBEDDED, allow_pickle=False) as archive:
        kept = {key: archive[key] for key in archive}
    # The inverse of mu-law, for each of its 256 codes.
    levels = 2 * np.arange(_MU + 1) / _MU - 1
    decoded = np.sign(levels) * np.expm1(np.abs(levels) * np.log1p(_MU)) / _MU
    samples = np.round(32767 * decoded).astype(np.int16)[kept["codes"]]
    sounds = np.split(samples, np.cumsum(kept["lengths"])[:-1])
    said = kept["label_names"][kept["labels"]]
    chosen = _chosen("The spoken digits", said, words)
    speakers = kept["speaker_names"][kept["speakers"]][chosen]
    found = _Found(
        "spoken digits",
        [sounds[index] for index in chosen],
        said[chosen],
        speakers,
        np.full(len(chosen), -1),
        int(kept["sample_rate_hz"]),
    )
    return found.split(_masks(found, "speaker", seed))
