"""Folders of WAV files, images and arrays."""

import collections
import dataclasses
import os
import pathlib
import stat
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfaccel.data._looking import Bounds, Log
from tfaccel.data._sources import Arrays
from tfaccel.data._values import look_at_arrays
from tfaccel.data.files import _images
from tfaccel.data.files._wav import BrokenFileError, Wav, read_wav
from tfaccel.data.findings import Fault, FaultKind, Findings
from tfaccel.data.rules import Rules

_SUFFIXES = {
    **dict.fromkeys((".wav", ".wave"), "WAV"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe"), "JPEG"),
    **{".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".npy": "NPY", ".npz": "NPZ"},
}
_ARRAYS = ("NPY", "NPZ")


def check_files(paths: Sequence[Any], rules: Rules, bounds: Bounds) -> Findings:
    """Looks at files, and at those in folders, whatever state they are in.

    Raises:
        ValueError: a path does not exist.
    """
    for path in paths:
        if not os.path.lexists(path):
            raise ValueError(
                "`data` must be the path of a folder or file that exists, where it is a path. "
                f"Received: {path!r}"
            )
    log = Log(str(paths[0]) if len(paths) == 1 else "files")
    known, others = _sorted_out(_walk(paths, log), log)
    log.total = len(known)
    look = _Look(rules, bounds, log)
    chosen = bounds.spread(len(known))
    done = 0
    for index in chosen:
        if bounds.is_over:
            break
        look.at(int(index), *known[index])
        done += 1
    look.compare()
    log.count(samples=done)
    if not known:
        log.add(Fault(FaultKind.EMPTY, "there are no WAV files, images or arrays"))
    for said in (*bounds.left_out(done, len(chosen), len(known), "files"), *others):
        log.not_looked_at(said)
    log.seconds = bounds.seconds
    return log.findings()


def _walk(paths: Sequence[Any], log: Log) -> Iterator[pathlib.Path]:
    def unreadable(error: OSError) -> None:
        log.add(Fault(FaultKind.UNREADABLE, f"the folder can't be read: {error}"))

    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            yield path
            continue
        for folder, folders, names in os.walk(path, onerror=unreadable):
            folders.sort()
            yield from (pathlib.Path(folder, name) for name in sorted(names))


def _sorted_out(
    paths: Iterator[pathlib.Path], log: Log
) -> tuple[list[tuple[pathlib.Path, str]], list[str]]:
    """The files of a known kind, and sentences on the others."""
    known, others = [], collections.Counter[str]()
    for path in paths:
        kind = _SUFFIXES.get(path.suffix.lower()) or _sniffed(path)
        if kind is None:
            others[path.suffix or "no suffix"] += 1
        else:
            known.append((path, kind))
    count = sum(others.values())
    if not count:
        return known, []
    files = f"{count:,} file{'s' * (count > 1)}"
    shown = ", ".join(f"{suffix}: {number}" for suffix, number in others.most_common(10))
    return known, [f"{files} of other kinds ({shown})"]


def _sniffed(path: pathlib.Path) -> str | None:
    """What the first bytes say of a file whose name says nothing."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return None
    if start[:4] == b"RIFF" and start[8:] == b"WAVE":
        return "WAV"
    if start.startswith(b"\x93NUMPY"):
        return "NPY"
    form = _images.sniff(start)
    return None if form == "BMP" else form  # two letters prove nothing


class _Look:
    """Looks at one file after another, and compares them in the end."""

    def __init__(self, rules: Rules, bounds: Bounds, log: Log):
        self._rules, self._log = rules, log
        # `max_samples` counts files here; an array is looked at while there is time.
        self._bounds = dataclasses.replace(bounds, max_samples=None)
        self._wavs: dict[int, tuple[str, Wav]] = {}

    def at(self, index: int, path: pathlib.Path, kind: str) -> None:
        """Looks at one file; whatever is wrong becomes a fault."""
        try:
            self._look(index, path, kind)
        except BrokenFileError as error:
            self._add(error.kind, str(error), index, path)
        except Exception as error:  # a file may be broken in ways that nobody foresaw
            reason = f"reading it raised {type(error).__name__}: {str(error)[:200]}"
            self._add(FaultKind.UNREADABLE, reason, index, path)

    def _add(self, kind: FaultKind, reason: str, index: int, path: pathlib.Path | str) -> None:
        self._log.add(Fault(kind, reason, index=index, path=str(path)))

    def _look(self, index: int, path: pathlib.Path, kind: str) -> None:
        status = path.stat()
        # A named pipe would be waited for without end.
        if not stat.S_ISREG(status.st_mode):
            raise BrokenFileError(FaultKind.UNREADABLE, "it is no regular file")
        if not status.st_size:
            raise BrokenFileError(FaultKind.EMPTY, "the file has no bytes")
        if kind in _ARRAYS:
            self._arrays(path, kind)
            return
        if status.st_size > self._rules.max_file_bytes:
            most = self._rules.max_file_bytes
            said = f"{status.st_size:,} bytes, more than `max_file_bytes={most}`: it was not read"
            raise BrokenFileError(FaultKind.HUGE, said)
        if kind == "WAV":
            with path.open("rb") as file:
                self._wavs[index] = str(path), read_wav(file, status.st_size)
            return
        data = path.read_bytes()
        form = _images.sniff(data)
        if form not in (None, kind):
            said = f"the name says {kind}, the content is {form}"
            raise BrokenFileError(FaultKind.HEADER, said)
        _images.check_image(data, self._rules)

    def _arrays(self, path: pathlib.Path, kind: str) -> None:
        if kind == "NPY":
            with path.open("rb") as file:
                start = file.read(6)
            if start != b"\x93NUMPY":
                raise BrokenFileError(FaultKind.HEADER, "it does not begin as an NPY file")
            self._values(path, np.load(path, mmap_mode="r", allow_pickle=False))
            return
        if not zipfile.is_zipfile(path):
            raise BrokenFileError(FaultKind.TRUNCATED, "it has no directory, as an NPZ file has")
        with np.load(path, allow_pickle=False) as members:
            self._members(path, members)

    def _members(self, path: pathlib.Path, file: Any) -> None:
        most = self._rules.max_array_bytes
        for entry in file.zip.infolist():
            if entry.file_size > most:
                said = f"{entry.filename} has {entry.file_size:,} bytes, more than "
                said += f"`max_array_bytes={most}`: it was not read"
                self._log.add(Fault(FaultKind.HUGE, said, path=str(path)))
                continue
            name = entry.filename.removesuffix(".npy")
            try:
                self._values(path, {name: file[name]})
            except Exception as error:
                said = f"{name} can't be read: {type(error).__name__}: {str(error)[:200]}"
                self._log.add(Fault(FaultKind.UNREADABLE, said, path=str(path)))

    def _values(self, path: pathlib.Path, data: Any) -> None:
        leaf = next(iter(data.values())) if isinstance(data, dict) else data
        rules = self._rules if leaf.ndim else Rules()  # one number is no sample
        if not leaf.ndim:
            data = leaf[None] if data is leaf else dict.fromkeys(data, leaf[None])
        look_at_arrays(Arrays.of(data), rules, self._bounds, self._log, str(path))

    def compare(self) -> None:
        """WAV files that differ from the rules, or from most others."""
        wavs = self._wavs
        rate = self._rules.sample_rate
        self._odd_ones(
            FaultKind.SAMPLE_RATE,
            {i: f"{wav.sample_rate} Hz" for i, (_, wav) in wavs.items()},
            None if rate is None else f"{rate} Hz",
        )
        channels = {i: f"{wav.channels} channel(s)" for i, (_, wav) in wavs.items()}
        self._odd_ones(FaultKind.ENCODING, channels, None)
        self._odd_ones(FaultKind.ENCODING, {i: w.encoding for i, (_, w) in wavs.items()}, None)

    def _odd_ones(self, kind: FaultKind, values: dict[int, str], right: str | None) -> None:
        if not values:
            return
        usual, count = collections.Counter(values.values()).most_common(1)[0]
        wanted = usual if right is None else right
        why = f"{count} of {len(values)} files have" if right is None else "asked for is"
        for index, value in values.items():
            if value != wanted:
                self._add(kind, f"{value}, where {why} {wanted}", index, self._wavs[index][0])
