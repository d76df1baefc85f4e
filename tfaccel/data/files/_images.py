"""PNG, JPEG, GIF and BMP files: sizes from the header first, pixels second.

Sources: https://www.w3.org/TR/png-3/ (chunks, IHDR), ITU-T T.81 (JPEG markers),
https://www.w3.org/Graphics/GIF/spec-gif89a.txt, and Microsoft's BITMAPFILEHEADER and
BITMAPINFOHEADER.
"""

import struct

import tensorflow as tf

from tfaccel.data.files._wav import BrokenFileError
from tfaccel.data.findings import FaultKind
from tfaccel.data.rules import Rules, fits

MAGIC = {
    "PNG": b"\x89PNG\r\n\x1a\n",
    "JPEG": b"\xff\xd8\xff",
    "GIF": b"GIF8",
    "BMP": b"BM",
}
# JPEG's frame headers: all of C0-CF but the Huffman, extension and arithmetic tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
# Some writers put a few bytes of their own behind the end.
_TAIL_BYTES = 1024
# JPEG's markers without a length: TEM and RST0-7.
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})


def check_image(data: bytes, rules: Rules) -> None:
    """Looks whether TensorFlow can decode an image, without decoding what is huge.

    Args:
        data: the whole file.
        rules: of its shape and greatest size.

    Raises:
        BrokenFileError: there is something wrong.
    """
    form = sniff(data)
    if form is None:
        said = f"it does not begin as an image: {data[:8]!r}"
        raise BrokenFileError(FaultKind.HEADER, said)
    height, width = _SIZES[form](data)
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
        said = str(error).splitlines()[0].rpartition("}}")[2].strip()
        kind = FaultKind.UNREADABLE
        raise BrokenFileError(kind, f"the {form} can't be decoded: {said[:200]}") from error
    shape, rule = tuple(image.shape), rules.shape
    if isinstance(rule, tuple | list) and not fits(shape, tuple(rule)):
        said = f"shape {shape} where {tuple(rule)} is asked for"
        raise BrokenFileError(FaultKind.SHAPE, said)


def sniff(data: bytes) -> str | None:
    """The format that a file's first bytes say; None for none of those known."""
    return next((name for name, magic in MAGIC.items() if data.startswith(magic)), None)


def _truncated(form: str) -> BrokenFileError:
    return BrokenFileError(FaultKind.TRUNCATED, f"the {form} ends before its header does")


def _png_size(data: bytes) -> tuple[int, int]:
    if len(data) < 24:
        raise _truncated("PNG")
    if data[12:16] != b"IHDR":
        said = f"a PNG begins with IHDR, not {data[12:16]!r}"
        raise BrokenFileError(FaultKind.HEADER, said)
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            said = f"no JPEG marker at byte {at}"
            raise BrokenFileError(FaultKind.HEADER, said)
        marker = data[at + 1]
        if marker == 0xFF or marker in _BARE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            if at + 9 > len(data):
                raise _truncated("JPEG")
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return height, width
        if marker in (0xD9, 0xDA):
            raise BrokenFileError(FaultKind.HEADER, "the JPEG has no frame header")
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    raise _truncated("JPEG")


def _gif_size(data: bytes) -> tuple[int, int]:
    if len(data) < 13:
        raise _truncated("GIF")
    width, height = struct.unpack("<HH", data[6:10])
    return height, width


def _bmp_size(data: bytes) -> tuple[int, int]:
    if len(data) < 30:
        raise _truncated("BMP")
    width, height = struct.unpack("<ii", data[18:26])
    return abs(height), width


_SIZES = {"PNG": _png_size, "JPEG": _jpeg_size, "GIF": _gif_size, "BMP": _bmp_size}


def _check_end(form: str, data: bytes) -> None:
    """Decoders forgive some missing ends; the pixels before them are guessed."""
    if form == "BMP":
        size = struct.unpack("<I", data[2:6])[0]
        if size > len(data):
            said = f"the header says {size} bytes, {len(data)} are there"
            raise BrokenFileError(FaultKind.TRUNCATED, said)
        return
    tail = data[-_TAIL_BYTES:]
    whole = tail.rstrip(b"\0\r\n ").endswith(b";") if form == "GIF" else _ENDS[form] in tail
    if not whole:
        said = f"the {form} does not end as one: it is cut off"
        raise BrokenFileError(FaultKind.TRUNCATED, said)
