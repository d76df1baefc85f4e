"""Broken WAV files, images and arrays: each is found, none breaks the check."""

import os
import pathlib
import struct

import broken_files as files
import numpy as np
import pytest
from clocks import FakeClock

from tfaccel.data import Rules, check

SPEECH = pathlib.Path(__file__).parent.parent.parent / "shared" / "data" / "fsdd" / "recordings"


def kinds(findings):
    return {(pathlib.Path(f.path).name, f.kind.value) for f in findings.faults}


def put(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """Whole files, of which most are WAV files at 16 kHz."""
    put(tmp_path, files.WHOLE | {f"b/{i}.wav": files.wav(100 + i) for i in range(5)})
    return tmp_path


def test_whole_files_have_no_fault(folder):
    findings = check(folder)
    assert findings.ok, findings.to_markdown()
    assert findings.samples == findings.total == len(files.WHOLE) + 5
    assert findings.is_complete


@pytest.mark.parametrize(
    "content",
    [
        files.wav(channels=2),
        files.wav(bits=8),
        files.wav(bits=24),
        files.wav(bits=32, tag=3, audio=np.ones(400, "<f4").tobytes()),
        files.wav(extra=files.chunk(b"LIST", b"odd")),
        files.wav() + files.chunk(b"bext", b"x" * 100),
    ],
)
def test_other_whole_wav_files(tmp_path, content):
    put(tmp_path, {"a.wav": content})
    assert check(tmp_path).ok


PLANTED = {
    "empty.wav": (b"", "empty"),
    "silent.wav": (files.wav(audio=b""), "empty"),
    "text.wav": (b"this is no WAV file at all", "header"),
    "half.wav": (files.wav()[:500], "truncated"),
    "head.wav": (files.wav()[:30], "truncated"),
    "riff.wav": (files.wav()[:4] + struct.pack("<I", 9999) + files.wav()[8:], "truncated"),
    "no_format.wav": (files.wav().replace(b"fmt ", b"junk"), "header"),
    "rate.wav": (files.wav(rate=44100), "sample rate"),
    "stereo.wav": (files.wav(channels=2), "encoding"),
    "bits.wav": (files.wav(bits=8), "encoding"),
    "mp3.wav": (files.wav(tag=85), "encoding"),
    "zero_rate.wav": (files.wav(rate=0), "header"),
    "block.wav": (files.wav(block=3), "header"),
    "frames.wav": (files.wav(audio=b"\0" * 33), "truncated"),
    "nan.wav": (
        files.wav(bits=32, tag=3, audio=np.array([0, np.nan, 1], "<f4").tobytes()),
        "nan",
    ),
    "inf.wav": (files.wav(bits=32, tag=3, audio=np.array([np.inf], "<f4").tobytes()), "inf"),
    "empty.png": (b"", "empty"),
    "text.png": (b"not an image", "header"),
    "half.png": (files.png()[:700], "truncated"),
    "flipped.png": (files.png()[:400] + b"\xff\x00\xff" + files.png()[403:], "unreadable"),
    "really_a.png": (files.jpeg(), "header"),
    "huge.png": (files.png()[:16] + struct.pack(">II", 90000, 90000) + files.png()[24:], "huge"),
    "none.png": (files.png()[:16] + struct.pack(">II", 0, 9) + files.png()[24:], "header"),
    "half.jpg": (files.jpeg()[:600], "truncated"),
    "head.jpg": (files.jpeg()[:12], "truncated"),
    "start.jpg": (files.jpeg()[:2] + b"\0" + files.jpeg()[3:], "header"),
    "cut.gif": (files.GIF[:-1], "truncated"),
    "half.gif": (files.GIF[:12], "truncated"),
    "half.bmp": (files.bmp()[:800], "truncated"),
    "huge.bmp": (files.bmp()[:18] + struct.pack("<ii", 99999, 99999) + files.bmp()[26:], "huge"),
    "nan.npy": (files.npy(np.array([[1, np.nan], [2, 3]], np.float32)), "nan"),
    "half.npy": (files.npy(np.ones((50, 3)))[:400], "unreadable"),
    "head.npy": (b"\x93NUMBER" + files.npy(np.ones(3))[7:], "header"),
    "pickle.npy": (files.npy(np.array([{}, []], object)), "unreadable"),
    "one_nan.npy": (files.npy(np.float32(np.nan)), "nan"),
    "inf.npz": (files.npz(x=np.ones(3), y=np.array([1, np.inf])), "inf"),
    "half.npz": (files.npz(x=np.ones(300))[:900], "truncated"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_by_itself(folder, name):
    content, kind = PLANTED[name]
    put(folder, {f"c/{name}": content})
    assert kinds(check(folder)) == {(name, kind)}


def test_all_of_them_at_once(folder):
    put(folder, {f"c/{name}": content for name, (content, _) in PLANTED.items()})
    put(folder, {f"d/{i}.wav": files.wav() for i in range(5)})  # still most are at 16 kHz
    findings = check(folder)
    assert kinds(findings) >= {(name, kind) for name, (_, kind) in PLANTED.items()}
    assert not any("/d/" in f.path or "/b/" in f.path for f in findings.faults)
    assert len({f.index for f in findings.faults}) >= len(PLANTED) - 4  # arrays' are samples'


@pytest.mark.parametrize("name", files.WHOLE)
def test_wherever_a_file_is_cut_it_is_found(tmp_path, name):
    whole = files.WHOLE[name]
    cuts = sorted({*range(0, min(60, len(whole))), *range(60, len(whole), len(whole) // 20 + 1)})
    put(tmp_path, {f"{cut:05}_{name}": whole[:cut] for cut in [*cuts, len(whole) - 1]})
    broken = {name for name, _ in kinds(check(tmp_path))}
    assert broken == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", files.WHOLE)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_in_a_file_the_check_goes_on(tmp_path, name, seed):
    random, whole = np.random.default_rng(seed), files.WHOLE[name]
    for i in range(25):
        content = bytearray(whole)
        for at in random.integers(0, min(len(whole), 120), random.integers(1, 12)):
            content[at] = random.integers(256)
        put(tmp_path, {f"{i}_{name}": bytes(content[: random.integers(1, len(whole) + 1)])})
        put(tmp_path, {f"r{i}_{name}": random.bytes(random.integers(1, 300))})
    findings = check(tmp_path)
    assert findings.samples == 50
    assert sum(findings.counts.values()) >= 25  # all the random ones at least
    assert findings.from_json(findings.to_json()) == findings


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "a.wav").open("wb") as file:
        file.truncate(2**33)  # takes no place on the disk
    findings = check(tmp_path)
    assert kinds(findings) == {("a.wav", "huge")}
    assert "8,589,934,592 bytes" in findings.faults[0].reason


def test_a_huge_array_in_an_npz_is_not_unpacked(tmp_path):
    put(tmp_path, {"a.npz": files.npz(x=np.ones(1000), y=np.ones(10))})
    assert kinds(check(tmp_path, Rules(max_array_bytes=1000))) == {("a.npz", "huge")}


def test_the_rate_asked_for_wins_over_that_of_most(folder):
    put(folder, {"c.wav": files.wav(rate=8000)})
    findings = check(folder, Rules(sample_rate=8000))
    assert findings.counts == {"sample rate": 6}
    assert "16000 Hz, where asked for is 8000 Hz" in findings.faults[0].reason


def test_the_shape_asked_for(folder):
    findings = check(folder / "a.png", Rules(shape=(20, 30, 1)))
    assert findings.faults[0].reason == "shape (20, 30, 3) where (20, 30, 1) is asked for"


def test_things_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    put(tmp_path, {"notes.txt": b"hello", "unnamed": files.wav()})
    findings = check(tmp_path)
    assert kinds(findings) == {("pipe.wav", "unreadable"), ("gone.png", "unreadable")}
    assert findings.samples == 3
    # os.walk lists a link to a folder among the folders, and does not follow it.
    assert "1 file of other kinds (.txt: 1)" in findings.summary()


def test_a_folder_with_nothing_to_look_at(tmp_path):
    assert check(tmp_path).counts == {"empty": 1}


def test_no_such_folder():
    with pytest.raises(ValueError, match="`data` must be the path.*nowhere"):
        check("/nowhere/at/all")


def test_bounds_are_kept_and_told(folder):
    some = check(folder, max_samples=4)
    assert some.samples == 4
    assert "8 of 12 files, beyond `max_samples=4`" in some.not_looked_at[0]
    quick = check(folder, max_seconds=5, clock=FakeClock(step=1.0))
    assert 0 < quick.samples < 12
    assert "`max_seconds=5` were spent" in quick.summary()


@pytest.mark.skipif(not SPEECH.is_dir(), reason="the recordings are not here")
def test_real_recordings_have_no_fault():
    findings = check(SPEECH, max_samples=300)
    assert findings.ok, findings.to_markdown()
