"""The speech example's recordings: every kind of folder, every kind of bad file."""

import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile

import _speech_data
import numpy as np
import pytest
from _speech_data import from_folder, spoken_digits
from _wav_files import RecordingError, read_header, read_headers
from sounds import write_wav

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


@pytest.fixture
def numbered(tmp_path):
    """Two words by two speakers, eight takes each."""
    folder = tmp_path / "numbered"
    for word in ("no", "yes"):
        for speaker in ("ann", "bob"):
            for take in range(8):
                write_wav(folder / f"{word}_{speaker}_{take}.wav")
    return folder


@pytest.fixture
def commands(tmp_path):
    """A folder as Speech Commands is: ten speakers, two words, two takes of each."""
    folder = tmp_path / "commands"
    for word in ("no", "yes"):
        for speaker in range(10):
            for take in range(2):
                write_wav(folder / word / f"{speaker:08x}_nohash_{take}.wav")
    write_wav(folder / "_background_noise_" / "rain.wav")
    return folder


def stems(recordings, part):
    return {pathlib.Path(recordings.sounds[index].path).stem for index in getattr(recordings, part)}


def assert_parts(recordings):
    """Each recording in one part, and its word as the path tells."""
    parts = [recordings.train, recordings.validation, recordings.test]
    assert sorted(np.concatenate(parts)) == list(range(len(recordings.sounds)))
    for sound, label in zip(recordings.sounds, recordings.labels, strict=True):
        path = pathlib.Path(sound.path)
        is_flat = path.parent.name == recordings.name
        word = path.stem.split("_")[0] if is_flat else path.parent.name
        assert word == recordings.label_names[label]


def test_numbered_files_are_tested_on_the_first_takes(numbered):
    found = from_folder(numbered)
    assert_parts(found)
    assert found.label_names == ("no", "yes")
    assert found.rate_hz == 8000
    assert {int(stem.split("_")[2]) for stem in stems(found, "test")} == {0, 1, 2, 3, 4}
    assert len(found.test) == 20
    assert str(found) == (
        "numbered: 11 + 1 + 20 recordings (train + validation + test) of 2 words at 8000 Hz"
    )


def test_the_seed_moves_validation_data_and_no_test_data(numbered):
    found = [from_folder(numbered, seed=seed) for seed in range(6)]
    assert len({frozenset(stems(r, "validation")) for r in found}) > 1
    assert len({frozenset(stems(r, "test")) for r in found}) == 1


def test_folders_named_for_words_keep_speakers_together(commands):
    found = from_folder(commands)
    assert_parts(found)
    speakers = [{s[:8] for s in stems(found, part)} for part in ("train", "validation", "test")]
    assert [len(part) for part in speakers] == [7, 1, 2]
    assert len(set.union(*speakers)) == 10
    assert found.label_names == ("no", "yes")


def test_a_folders_own_lists_decide(commands):
    (commands / "validation_list.txt").write_text("no/00000000_nohash_0.wav\n")
    (commands / "testing_list.txt").write_text("yes/00000001_nohash_1.wav\n")
    found = from_folder(commands)
    assert_parts(found)
    assert stems(found, "validation") == {"00000000_nohash_0"}
    assert stems(found, "test") == {"00000001_nohash_1"}
    assert len(from_folder(commands, by="speaker").test) == 8


def test_unknown_speakers_are_split_by_recording(tmp_path):
    for word in ("no", "yes"):
        for number in range(10):
            write_wav(tmp_path / word / f"{number}.wav")
    found = from_folder(tmp_path)
    assert_parts(found)
    assert (len(found.train), len(found.validation), len(found.test)) == (14, 2, 4)
    with pytest.raises(RecordingError, match="must name the speakers"):
        from_folder(tmp_path, by="speaker")
    with pytest.raises(RecordingError, match="must have numbered recordings"):
        from_folder(tmp_path, by="take")


def test_only_the_words_asked_for(commands):
    for speaker in range(10):
        write_wav(commands / "stop" / f"{speaker:08x}_nohash_0.wav")
    (commands / "stop" / "00000000_nohash_0.wav").write_bytes(b"not looked at")
    assert from_folder(commands, ["yes", "no"]).label_names == ("no", "yes")
    with pytest.raises(RecordingError, match="commands: no recordings of go, up"):
        from_folder(commands, ["yes", "up", "go"])


def test_speech_commands_as_keras_gets_it(commands, tmp_path, monkeypatch):
    archive = tmp_path / "speech_commands_v0.02.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(commands, arcname=".")
    monkeypatch.setattr(_speech_data, "COMMANDS_URL", archive.as_uri())
    found = _speech_data.speech_commands(cache_dir=tmp_path / "keras")
    assert (found.name, found.label_names, len(found.sounds)) == (
        "Speech Commands",
        ("no", "yes"),
        40,
    )


def test_speech_commands_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(_speech_data, "COMMANDS_URL", (tmp_path / "nowhere.tar.gz").as_uri())
    with pytest.raises(RecordingError, match="can't be downloaded: .*nowhere"):
        _speech_data.speech_commands(cache_dir=tmp_path / "keras")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "Received: neither"),
        (["yes_ann_0.wav", "yes/0.wav"], "Received: both"),
        (["yes_ann.wav"], "yes_ann.wav must be named {label}_{speaker}_{index}.wav"),
        (["yes_ann_x.wav"], "yes_ann_x.wav must be named"),
        (["yes/0.wav", "yes/1.wav", "yes/2.wav"], "must hold two words or more"),
        (["yes_ann_0.wav", "no_ann_0.wav"], "leaves no recordings for training"),
        (["yes_ann_5.wav", "no_ann_5.wav", "no_ann_6.wav"], "leaves no recordings for testing"),
        (
            ["yes_ann_0.wav", *(f"no_ann_{take}.wav" for take in range(20))],
            "leaves no recordings of yes for training",
        ),
    ],
)
def test_folders_that_are_of_no_use(tmp_path, names, message):
    for name in names:
        write_wav(tmp_path / name)
    with pytest.raises(RecordingError) as caught:
        from_folder(tmp_path)
    assert message in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(RecordingError, match="There is no folder .*nowhere"):
        from_folder(tmp_path / "nowhere")


def broken(path, kind):
    """Makes the file bad in some way."""
    write_wav(path)
    whole = path.read_bytes()
    if kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "no rate":
        path.write_bytes(whole[:24] + struct.pack("<I", 0) + whole[28:])
    elif kind == "8 bits":
        write_wav(path, sample_bytes=1)
    elif kind == "no samples":
        write_wav(path, samples=[])
    elif kind == "another rate":
        write_wav(path, rate_hz=16000)
    elif kind == "huge claim":
        path.write_bytes(whole[:40] + struct.pack("<I", 2**31 - 10) + whole[44:])
    else:
        content = {"empty": b"", "text": b"hello" * 20, "cut": whole[:-7], "header": whole[:30]}
        path.write_bytes(content[kind])


REASONS = {
    "empty": "its header is cut off or damaged",
    "header": "its header is cut off or damaged",
    "text": "it can't be read as a WAV file: file does not start with RIFF id",
    "cut": "it is cut off: its header tells of 1600 bytes of samples. Received: 1593",
    "huge claim": "it is cut off: its header tells of 2147483638 bytes of samples. Received: 1600",
    "8 bits": "it must have 16 bits a sample. Received: 8",
    "no samples": "it holds no samples",
    "no rate": "its sample rate must be positive. Received: 0",
    "another rate": "it must have 8000 Hz, as most have. Received: 16000",
    "folder": "it can't be read as a WAV file: ",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_bad_file_is_named_with_its_reason(numbered, kind):
    path = numbered / "yes_bob_7.wav"
    broken(path, kind)
    with pytest.raises(RecordingError) as caught:
        from_folder(numbered)
    assert str(caught.value).startswith(f"1 of 32 files can't be used:\n{path}: {REASONS[kind]}")


def test_many_bad_files_are_counted(numbered):
    for path in sorted(numbered.glob("yes_*.wav"))[:12]:
        path.write_bytes(b"RIFF")
    with pytest.raises(RecordingError) as caught:
        from_folder(numbered)
    lines = str(caught.value).splitlines()
    assert len(lines) == 10
    assert (lines[0], lines[-1]) == ("12 of 32 files can't be used:", "... and 4 more.")


def test_a_damaged_header_never_gives_more_than_the_file_has(tmp_path, rng):
    """Whatever a header claims: an error that says why, or samples that are there."""
    path = tmp_path / "word.wav"
    write_wav(path)
    whole, refused = path.read_bytes(), 0
    for number in range(400):
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if number % 2 else whole)
        for place in rng.integers(0, min(len(damaged), 44), 1 + number % 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            found = read_header(path)
        except RecordingError as error:
            refused += bool(str(error))
        else:
            assert 0 < found.byte_count <= len(damaged) - found.offset
            assert found.channels > 0
            assert found.rate_hz > 0
    assert 200 <= refused < 400


def test_chunks_around_the_samples_are_skipped(tmp_path):
    path = tmp_path / "word.wav"
    samples = write_wav(path)
    whole = path.read_bytes()
    note = b"LIST" + struct.pack("<I", 4) + b"note"
    path.write_bytes(whole[:36] + note + whole[36:] + note)
    (found,) = read_headers([path])
    assert path.read_bytes()[found.offset :][: found.byte_count] == samples.tobytes()


def test_the_spoken_digits():
    found = spoken_digits()
    assert found.label_names == tuple(
        sorted(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    )
    assert (len(found.train), len(found.validation), len(found.test)) == (460, 50, 130)
    # Ten recordings by each voice, one behind the other.
    voices = [set(part // 10) for part in (found.train, found.validation, found.test)]
    assert sum(map(len, voices)) == len(set.union(*voices)) == 64
    assert np.bincount(found.labels).tolist() == [64] * 10
    assert all(0.1 < len(sound) / found.rate_hz < 1.2 for sound in found.sounds)
    assert all(0.25 < np.abs(sound).max() / 32768 < 0.95 for sound in found.sounds)
    assert _speech_data.EMBEDDED.stat().st_size < 2_000_000


def test_some_spoken_digits():
    assert spoken_digits(["two", "one"]).label_names == ("one", "two")
    with pytest.raises(RecordingError, match="The spoken digits: no recordings of eleven"):
        spoken_digits(["one", "eleven"])


def test_unpacking_undoes_packing():
    """Every level of mu-law comes back as the level that packs to it."""
    with np.load(_speech_data.EMBEDDED) as archive:
        codes = np.split(archive["codes"], np.cumsum(archive["lengths"])[:-1])
    for sound, code in zip(spoken_digits().sounds, codes, strict=True):
        level = np.abs(sound / 32767)
        companded = np.sign(sound) * np.log1p(255 * level) / np.log(256)
        np.testing.assert_allclose((companded + 1) / 2 * 255, code, atol=0.1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_the_spoken_digits_can_be_made_again(tmp_path):
    path = tmp_path / "again.npz"
    script = EXAMPLES / "data" / "make_spoken_digits.py"
    subprocess.run([sys.executable, script, f"--output={path}"], check=True)
    subprocess.run([sys.executable, script, f"--output={path}", "--check"], check=True)
    with np.load(path) as made, np.load(_speech_data.EMBEDDED) as kept:
        for name in ("labels", "speakers", "label_names", "speaker_names", "sample_rate_hz"):
            np.testing.assert_array_equal(made[name], kept[name])
        # Another version of espeak-ng speaks otherwise, but says as much.
        assert made["lengths"].sum() == pytest.approx(kept["lengths"].sum(), rel=0.1)
