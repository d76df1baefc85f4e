"""PNG, JPEG, GIF and BMP files: sizes from the header first, pixels second.

Sources: https://www.w3.org/TR/png-3/ (IHDR), https://www.w3.org/Graphics/GIF/spec-gif89a.txt, and
Microsoft's BITMAPFILEHEADER and BITMAPINFOHEADER.
"""

import struct
from typing import NamedTuple

import tensorflow as tf

from tfaccel.data.files._wav import BrokenFileError
from tfaccel.data.findings import FaultKind, first_line
from tfaccel.data.rules import Rules, fits


class _Form(NamedTuple):
    """How a kind of image begins and ends."""

    magic: bytes  # its first bytes
    size: str | None  # how its width and height are packed; None for JPEG, which TensorFlow reads
    size_at: int  # where they are
    end: bytes | None  # its last bytes; None for BMP, which says how long it is


_FORMS = {
    "PNG": _Form(b"\x89PNG\r\n\x1a\n", ">II", 16, b"IEND\xaeB`\x82"),
    "JPEG": _Form(b"\xff\xd8\xff", None, 0, b"\xff\xd9"),
    "GIF": _Form(b"GIF8", "<HH", 6, b";"),
    "BMP": _Form(b"BM", "<ii", 18, None),
}
# Some writers put a few bytes of their own behind the end.
_TAIL_BYTES = 1024


def check_image(data: bytes, rules: Rules) -> None:
    """Looks whether TensorFlow can decode an image, without decoding what is huge.

    Raises:
        BrokenFileError: there is something wrong.
    """
    form = sniff(data)
    if form is None:
        said = f"it does not begin as an image: {data[:8]!r}"
        raise BrokenFileError(FaultKind.HEADER, said)
    height, width = _size(form, data)
    if height < 1 or width < 1:
        raise BrokenFileError(FaultKind.HEADER, f"the header says {width} x {height} pixels")
    if height * width > rules.max_pixels:
        said = f"{width} x {height} pixels, more than `max_pixels={rules.max_pixels}`"
        raise BrokenFileError(FaultKind.HUGE, said)
    _check_end(form, data)
    try:
        # Of a GIF the first frame: a thousand frames of a small file may not fit in memory.
        image = tf.io.decode_image(data, expand_animations=False)
    except (tf.errors.OpError, ValueError) as error:
        kind, said = FaultKind.UNREADABLE, first_line(error)
        raise BrokenFileError(kind, f"the {form} can't be decoded: {said}") from error
    shape, rule = tuple(image.shape), rules.shape
    if isinstance(rule, tuple | list) and not fits(shape, tuple(rule)):
        said = f"shape {shape} where {tuple(rule)} is asked for"
        raise BrokenFileError(FaultKind.SHAPE, said)


def sniff(data: bytes) -> str | None:
    """The format that a file's first bytes say; None for none of those known."""
    return next((name for name, form in _FORMS.items() if data.startswith(form.magic)), None)


def _size(form: str, data: bytes) -> tuple[int, int]:
    """Height and width, as the header says."""
    packed, at = _FORMS[form].size, _FORMS[form].size_at
    if packed is None:
        return _jpeg_size(data)
    if len(data) < at + 8:
        raise BrokenFileError(FaultKind.TRUNCATED, f"the {form} ends before its header does")
    if form == "PNG" and data[12:16] != b"IHDR":
        said = f"a PNG begins with IHDR, not {data[12:16]!r}"
        raise BrokenFileError(FaultKind.HEADER, said)
    width, height = struct.unpack_from(packed, data, at)
    return abs(height), width


def _jpeg_size(data: bytes) -> tuple[int, int]:
    try:
        height, width, _ = tf.io.extract_jpeg_shape(data).numpy()
    except (tf.errors.OpError, ValueError) as error:
        whole = _FORMS["JPEG"].end in data[-_TAIL_BYTES:]  # type: ignore[operator]
        kind = FaultKind.HEADER if whole else FaultKind.TRUNCATED
        raise BrokenFileError(kind, f"the JPEG has no frame header: {first_line(error)}") from error
    return int(height), int(width)


def _check_end(form: str, data: bytes) -> None:
    """Raises where the end is missing: some decoders then make pixels up, and say nothing."""
    end, tail = _FORMS[form].end, data[-_TAIL_BYTES:]
    if end is None:
        size = struct.unpack_from("<I", data, 2)[0]
        if size > len(data):
            said = f"the header says {size} bytes, {len(data)} are there"
            raise BrokenFileError(FaultKind.TRUNCATED, said)
    elif not (tail.rstrip(b"\0\r\n ").endswith(end) if form == "GIF" else end in tail):
        said = f"the {form} does not end as one: it is cut off"
        raise BrokenFileError(FaultKind.TRUNCATED, said)
