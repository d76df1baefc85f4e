"""WAV files: what the header says, and whether the file keeps to it.

Source: Microsoft and IBM, Multimedia Programming Interface and Data Specifications 1.0
(1991), RIFF and WAVE; Microsoft, Multiple Channel Audio Data and WAVE Files (2001),
WAVE_FORMAT_EXTENSIBLE; http://soundfile.sapp.org/doc/WaveFormat/.
"""

import dataclasses
import struct
from typing import BinaryIO

import numpy as np

from tfaccel.data.findings import FaultKind

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_NAMES = {_PCM: "PCM", _FLOAT: "float", 6: "A-law", 7: "mu-law", 2: "ADPCM", 17: "ADPCM", 85: "MP3"}
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
# A file with more chunks before its audio has a wrong header.
_MOST_CHUNKS = 10_000
# Audio at 768 kHz is the fastest that recorders make.
_HIGHEST_RATE = 768_000


@dataclasses.dataclass(frozen=True)
class Wav:
    """What a WAV file's header says."""

    sample_rate: int  # Hz
    channels: int  # how many
    encoding: str  # such as `16-bit PCM`


class BrokenFileError(ValueError):
    """A file is damaged, or is not of the kind that it claims to be.

    Attributes:
        kind: what is wrong.
    """

    def __init__(self, kind: FaultKind, reason: str):
        super().__init__(reason)
        self.kind = kind


def read_wav(file: BinaryIO, size: int) -> Wav:
    """Reads the header, and looks whether the data is all there.

    Args:
        file: opened, at its first byte.
        size: of the file, bytes.

    Raises:
        BrokenFileError: there is something wrong.
    """
    start = file.read(12)
    if len(start) < 12 and b"RIFF".startswith(start[:4]):
        raise BrokenFileError(FaultKind.TRUNCATED, f"{size} bytes are no whole WAV header")
    if start[:4] != b"RIFF" or start[8:12] != b"WAVE":
        raise BrokenFileError(FaultKind.HEADER, f"it does not begin as a WAV file: {start[:12]!r}")
    promised = struct.unpack("<I", start[4:8])[0]
    header: bytes | None = None
    for _ in range(_MOST_CHUNKS):
        name, length = _chunk(file, size, header is None)
        at = file.tell()
        if name == b"fmt ":
            header = file.read(min(length, 40))
        elif name == b"data":
            if header is None:
                raise BrokenFileError(FaultKind.HEADER, "the data comes before the format")
            found = _checked(file, header, length, size - at)
            if promised > size:  # some writers count the 8 bytes before, too
                said = f"the header says {promised} bytes, {size - 8} are there"
                raise BrokenFileError(FaultKind.TRUNCATED, said)
            return found
        if at + length > size:
            said = f"the chunk {name!r} of {length} bytes goes beyond the end of the file"
            raise BrokenFileError(FaultKind.TRUNCATED, said)
        file.seek(at + length + length % 2)
    raise BrokenFileError(FaultKind.HEADER, f"no audio in the first {_MOST_CHUNKS} chunks")


def _chunk(file: BinaryIO, size: int, before_format: bool) -> tuple[bytes, int]:
    head = file.read(8)
    if len(head) == 8:
        return head[:4], struct.unpack("<I", head[4:])[0]
    missing = "format and no audio" if before_format else "audio"
    kind = FaultKind.TRUNCATED if file.tell() >= size else FaultKind.HEADER
    raise BrokenFileError(kind, f"it ends after {size} bytes: there is no {missing} in it")


def _checked(file: BinaryIO, header: bytes, length: int, present: int) -> Wav:
    if len(header) < 16:
        said = f"the format has {len(header)} bytes, not 16 or more"
        raise BrokenFileError(FaultKind.HEADER, said)
    tag, channels, rate, byte_rate, block, bits = struct.unpack("<HHIIHH", header[:16])
    if tag == _EXTENSIBLE and len(header) >= 26:
        tag = struct.unpack("<H", header[24:26])[0]
    encoding = f"{bits}-bit {_NAMES.get(tag, f'encoding {tag:#06x}')}"
    if not 1 <= channels <= 1024 or not 1 <= rate <= _HIGHEST_RATE:
        said = f"the header says {channels} channels at {rate} Hz"
        raise BrokenFileError(FaultKind.HEADER, said)
    if tag not in _BITS:
        said = f"{encoding} is neither PCM nor float"
        raise BrokenFileError(FaultKind.ENCODING, said)
    if bits not in _BITS[tag] or block != channels * bits // 8 or byte_rate != rate * block:
        said = (
            f"the header contradicts itself: {encoding}, {channels} channels at {rate} Hz, "
            f"{block} bytes a frame and {byte_rate} a second"
        )
        raise BrokenFileError(FaultKind.HEADER, said)
    _check_data(file, tag, bits, block, length, present)
    return Wav(rate, channels, encoding)


def _check_data(file: BinaryIO, tag: int, bits: int, block: int, length: int, present: int) -> None:
    if length > present:
        said = f"the header says {length} bytes of audio, {max(0, present)} are there"
        raise BrokenFileError(FaultKind.TRUNCATED, said)
    if not length:
        raise BrokenFileError(FaultKind.EMPTY, "there is no audio in it")
    if length % block:
        said = f"{length} bytes of audio are no whole number of frames of {block} bytes"
        raise BrokenFileError(FaultKind.TRUNCATED, said)
    if tag == _FLOAT:
        audio = np.frombuffer(file.read(length), f"<f{bits // 8}")
        bad = np.flatnonzero(~np.isfinite(audio))
        if len(bad):
            value = audio[bad[0]]
            kind = FaultKind.NAN if np.isnan(audio[bad]).any() else FaultKind.INF
            said = f"{value} at frame {bad[0] * bits // 8 // block}, {len(bad)} such values in all"
            raise BrokenFileError(kind, said)
