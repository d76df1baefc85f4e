"""WAV files: their headers, what is wrong with them, and folders of them."""

import collections
import dataclasses
import os
import pathlib
import wave
from collections.abc import Sequence

# Others are companded, floating point or padded; 16 is what nearly all recordings have.
_SAMPLE_BITS = 16
# As many bad files are named as fit on a screen; the message counts the rest.
_NAMED_ERRORS = 8


class RecordingError(ValueError):
    """Recordings can't be used; the message names the files and says why."""


@dataclasses.dataclass(frozen=True)
class WavFile:
    """Where a file has its samples: interleaved channels of 16-bit integers."""

    path: str  # the file
    offset: int  # the bytes before the samples
    byte_count: int  # the bytes of the samples
    channels: int  # how many there are
    rate_hz: int  # samples a second in each


def read_header(path: str | os.PathLike[str]) -> WavFile:
    """Where the file has its samples; they are not read, but must be there.

    Raises:
        RecordingError: it is no whole WAV file of 16-bit samples; the message says why
            and leaves the file's name to the caller.
    """
    try:
        with open(path, "rb") as file, wave.open(file) as reader:
            # Opened, the reader stands where the samples begin.
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
            channels, sample_bytes, rate_hz, frames = reader.getparams()[:4]
    except (EOFError, RuntimeError) as error:  # RuntimeError: a part ends behind the whole
        raise RecordingError("its header is cut off or damaged") from error
    except (wave.Error, OSError) as error:
        raise RecordingError(f"it can't be read as a WAV file: {error}") from error
    if 8 * sample_bytes != _SAMPLE_BITS:
        raise RecordingError(
            f"it must have {_SAMPLE_BITS} bits a sample. Received: {8 * sample_bytes}"
        )
    if rate_hz < 1:
        raise RecordingError(f"its sample rate must be positive. Received: {rate_hz}")
    byte_count = frames * channels * sample_bytes
    if not byte_count:
        raise RecordingError("it holds no samples")
    if size - offset < byte_count:
        raise RecordingError(
            f"it is cut off: its header tells of {byte_count} bytes of samples. "
            f"Received: {max(0, size - offset)}"
        )
    return WavFile(str(path), offset, byte_count, channels, rate_hz)


def read_headers(paths: Sequence[pathlib.Path]) -> list[WavFile]:
    """Where each file has its samples, which must be of one rate.

    Raises:
        RecordingError: files can't be used; the message names the first eight, says why,
            and counts the rest.
    """
    files, problems = [], {}
    for path in paths:
        try:
            files.append(read_header(path))
        except RecordingError as error:
            problems[str(path)] = str(error)
    rates = collections.Counter(file.rate_hz for file in files)
    usual = max(rates, key=rates.__getitem__, default=0)
    for file in files:
        if file.rate_hz != usual:
            problems[file.path] = f"it must have {usual} Hz, as most have. Received: {file.rate_hz}"
    if problems:
        lines = [f"{path}: {problem}." for path, problem in sorted(problems.items())]
        rest = len(lines) - _NAMED_ERRORS
        more = [f"... and {rest} more."] if rest > 0 else []
        head = f"{len(lines)} of {len(paths)} files can't be used:"
        raise RecordingError("\n".join([head, *lines[:_NAMED_ERRORS], *more]))
    return files


def files_of(folder: pathlib.Path) -> tuple[bool, list[pathlib.Path]]:
    """Whether a folder has a folder for each word, and its WAV files in order.

    Raises:
        RecordingError: there is no such folder, or it has both kinds of files, or none.
    """
    if not folder.is_dir():
        raise RecordingError(f"There is no folder {folder}")
    try:
        flat, nested = ([*folder.glob(pattern)] for pattern in ("*.wav", "*/*.wav"))
    except OSError as error:
        raise RecordingError(f"{folder} can't be read: {error}") from error
    if bool(flat) == bool(nested):
        raise RecordingError(
            f"{folder} must hold files {{label}}_{{speaker}}_{{index}}.wav or folders with .wav "
            f"files, one for each word. Received: {'both' if flat else 'neither'}"
        )
    return bool(nested), sorted(flat or nested)


def parts_of_name(path: pathlib.Path) -> tuple[str, str, int]:
    """Word, speaker and number, from `{label}_{speaker}_{index}.wav`.

    Raises:
        RecordingError: the file has another name.
    """
    parts = path.stem.split("_")
    if len(parts) != 3 or not all(parts) or not parts[2].isdecimal():
        raise RecordingError(
            f"{path} must be named {{label}}_{{speaker}}_{{index}}.wav, as 7_jackson_12.wav is, "
            "or lie in a folder that is named for its word."
        )
    return parts[0], parts[1], int(parts[2])
