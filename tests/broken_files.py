"""Whole WAV files, images and arrays, made from nothing, for tests to break."""

import io
import struct

import numpy as np
import tensorflow as tf

# One pixel: https://www.w3.org/Graphics/GIF/spec-gif89a.txt
GIF = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def wav(
    frames=400, rate=16000, channels=1, bits=16, tag=1, audio=None, extra=b"", **header
) -> bytes:
    """A WAV file; `header` overrides what its format says."""
    if audio is None:
        audio = bytes(i % 251 for i in range(frames * channels * bits // 8))
    said = {"block": channels * bits // 8, "byte_rate": rate * channels * bits // 8} | header
    numbers = (tag, channels, rate, said["byte_rate"], said["block"], bits)
    body = (
        b"WAVE" + chunk(b"fmt ", struct.pack("<HHIIHH", *numbers)) + extra + chunk(b"data", audio)
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def pixels(height=20, width=30, channels=3) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png(**size) -> bytes:
    return tf.io.encode_png(pixels(**size)).numpy()


def jpeg(**size) -> bytes:
    return tf.io.encode_jpeg(pixels(**size)).numpy()


def bmp(height=20, width=30) -> bytes:
    data = pixels(height, width, 3).tobytes() + b"\0" * (height * (-3 * width % 4))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + head + data


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


WHOLE = {
    "a.wav": wav(),
    "a.png": png(),
    "a.jpg": jpeg(),
    "a.gif": GIF,
    "a.bmp": bmp(),
    "a.npy": npy(np.ones((5, 3), np.float32)),
    "a.npz": npz(x=np.ones((5, 3)), y=np.arange(5)),
}
