"""Makes spoken_digits.npz, the speech that examples/speech_classifier.py trains on by default.

espeak-ng says the ten digits in 64 voices. A voice is one of its voice variants with an
English accent and a pitch of its own; each recording differs in speed and pitch and has
noise of its own strength and colour. The same espeak-ng makes the same file again, byte
for byte (`--check` says whether):

    apt install espeak-ng
    python examples/data/make_spoken_digits.py

README.md in this folder says what the file holds and whose it is.
"""

import io
import pathlib
import re
import subprocess
import sys
import wave
from collections.abc import Iterator

import numpy as np
from absl import app, flags

_OUTPUT = flags.DEFINE_string(
    "output", str(pathlib.Path(__file__).with_name("spoken_digits.npz")), "the file to make"
)
_CHECK = flags.DEFINE_bool("check", False, "write nothing; say whether the file is the same")

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLE_RATE_HZ = 8000
# Of espeak-ng 1.51, less the ones that whisper, sing or speak through effects, so that a
# person understands every one. They are espeak-ng's own names.
# fmt: off
VARIANTS = (
    "adam", "Alex", "Alicia", "Andrea", "Andy", "Annie", "antonio", "aunty", "belinda", "benjamin",
    "boris", "caleb", "david", "Denis", "Diogo", "ed", "edward", "edward2", "f1", "f2", "f3", "f4",
    "f5", "Gene", "Gene2", "grandma", "grandpa", "gustave", "Henrique", "Hugo", "iven", "iven2",
    "iven3", "iven4", "Jacky", "john", "Lee", "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m7",
    "m8", "marcelo", "Marco", "Mario", "max", "Michael", "michel", "miguel", "Mike", "norbert",
    "Nguyen", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "steph",
)
# fmt: on
ACCENTS = (
    "en-us",
    "en-gb",
    "en-gb-scotland",
    "en-us-nyc",
    "en-gb-x-rp",
    "en-029",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)
# A voice's pitch (espeak-ng's scale from 0 to 99), and how far a word is from it.
_PITCHES, _PITCH_WANDERS = (25, 75), 8
_WORDS_PER_MINUTE = (140, 240)
# Speech to noise. 5 dB is a loud room, at 30 dB the noise is hardly heard.
_SNR_DB = (5.0, 30.0)
# A sample of white noise plus this much of the noise so far: 0 is white, near 1 is brown.
_NOISE_COLOURS = (0.0, 0.9)
# The silence that stays around a word, and what is louder than silence.
_MARGIN_SECONDS, _SILENCE = 0.02, 0.01
_PEAKS = (0.3, 0.9)
# mu of mu-law, ITU-T G.711.
_MU = 255


def spoken(word: str, voice: str, speed: int, pitch: int) -> tuple[np.ndarray, int]:
    """What espeak-ng says, in -1 to 1, and its sample rate in Hz."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    done = subprocess.run(command, capture_output=True, check=True)
    with wave.open(io.BytesIO(done.stdout)) as reader:
        # To a pipe it writes a header that claims two gigabytes.
        sound = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
        return sound / 32768, reader.getframerate()


def resampled(sound: np.ndarray, rate_hz: int) -> np.ndarray:
    """The sound at SAMPLE_RATE_HZ: its spectrum is cut where the slower rate's ends."""
    # Silence behind it, as the Fourier transform takes the sound for periodic.
    padded = np.pad(sound, (0, rate_hz // 4))
    samples = len(padded) * SAMPLE_RATE_HZ // rate_hz
    spectrum = np.fft.rfft(padded)[: samples // 2 + 1]
    return np.fft.irfft(spectrum, samples) * (samples / len(padded))


def trimmed(sound: np.ndarray) -> np.ndarray:
    """The sound without the silence before and behind it, but for a margin."""
    loud = np.flatnonzero(np.abs(sound) > _SILENCE * np.abs(sound).max())
    margin = round(_MARGIN_SECONDS * SAMPLE_RATE_HZ)
    return sound[max(0, loud[0] - margin) : loud[-1] + margin]


def noisy(sound: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The sound with noise of some strength and colour, at some loudness."""
    colour, snr_db = random.uniform(*_NOISE_COLOURS), random.uniform(*_SNR_DB)
    noise = random.standard_normal(len(sound))
    for index in range(1, len(noise)):
        noise[index] += colour * noise[index - 1]
    noise *= np.sqrt(np.mean(sound**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    mixed = sound + noise
    return mixed * (random.uniform(*_PEAKS) / np.abs(mixed).max())


def mu_law(sound: np.ndarray) -> np.ndarray:
    """Eight bits a sample, finer where it is quiet: ITU-T G.711's curve, in its plain form."""
    companded = np.sign(sound) * np.log1p(_MU * np.abs(sound)) / np.log1p(_MU)
    return np.round((companded + 1) / 2 * _MU).astype(np.uint8)


def recordings() -> Iterator[tuple[int, int, np.ndarray]]:
    """Label, speaker and codes of each recording."""
    for speaker, variant in enumerate(VARIANTS):
        # By speaker, so that one more voice would leave the others as they are.
        random = np.random.default_rng(speaker)
        voice = f"{ACCENTS[speaker % len(ACCENTS)]}+{variant}"
        own_pitch = random.integers(*_PITCHES)
        for label, word in enumerate(WORDS):
            speed = int(random.integers(*_WORDS_PER_MINUTE))
            pitch = int(own_pitch + random.integers(-_PITCH_WANDERS, _PITCH_WANDERS + 1))
            sound = trimmed(resampled(*spoken(word, voice, speed, pitch)))
            yield label, speaker, mu_law(noisy(sound, random))


def packed() -> bytes:
    """The file's content."""
    labels, speakers, codes = zip(*recordings(), strict=True)
    names = [
        f"{variant.lower()}-{ACCENTS[index % len(ACCENTS)]}"
        for index, variant in enumerate(VARIANTS)
    ]
    content = io.BytesIO()
    # Not compressed: that would save a tenth, and another zlib would make other bytes.
    np.savez(
        content,
        codes=np.concatenate(codes),
        lengths=np.array([len(code) for code in codes], np.int32),
        labels=np.array(labels, np.int32),
        speakers=np.array(speakers, np.int32),
        label_names=np.array(WORDS),
        speaker_names=np.array(names),
        sample_rate_hz=np.array(SAMPLE_RATE_HZ, np.int32),
    )
    return content.getvalue()


def require_voices() -> None:
    """Exits unless espeak-ng is there and has every variant: for others it speaks as its own."""
    try:
        listed = subprocess.run(
            ["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        sys.exit("espeak-ng is not installed: apt install espeak-ng, or brew install espeak-ng.")
    missing = set(VARIANTS) - set(re.findall(r"!v/(\S+)", listed))
    if missing:
        sys.exit(f"This espeak-ng lacks the voices {', '.join(sorted(missing))}: 1.51 has them.")


def main(argv: list[str]) -> None:
    """Makes the file, or compares it with what it would make."""
    if len(argv) > 1:
        sys.exit(f"There are flags only, no other arguments. Received: {' '.join(argv[1:])}")
    require_voices()
    path, content = pathlib.Path(_OUTPUT.value), packed()
    if _CHECK.value:
        sys.exit(None if path.read_bytes() == content else f"{path} would come out otherwise.")
    path.write_bytes(content)
    print(f"{path}: {len(VARIANTS) * len(WORDS)} recordings, {len(content):,} bytes")


if __name__ == "__main__":
    app.run(main)
