"""Trains a network that recognises spoken words, with tfaccel, and shows what that changed.

Without arguments it trains a small network on the repository's own spoken digits twice,
by stock Keras and with `tfaccel.AccelCallback`, and compares the two. It is tested on
voices that it never heard. That takes about a minute:

    pip install 'tfaccel[cpu]'
    python examples/speech_classifier.py

On your own recordings: a folder with a folder of WAV files for each word, or with files
named {label}_{speaker}_{index}.wav:

    python examples/speech_classifier.py --data_dir recordings --model gru --epochs 20

On ten words of Speech Commands (a download of 2.3 GiB), with a picture of what is taken
for what:

    pip install 'tfaccel[report]'
    python examples/speech_classifier.py --dataset speech_commands \
        --words yes,no,up,down,left,right,on,off,stop,go --confusion_file confusion.png
"""

import functools
import pathlib
import sys

import _confusion
import _example
import _networks
import _picture
import _speech_data
import _speech_features
import _training
import keras
import numpy as np
from absl import app, flags
from rich.console import Console

import tfaccel

_MODEL = flags.DEFINE_enum(
    "model", "cnn", ["cnn", "lstm", "gru"], "the network: convolutions, or one and a recurrence"
)
_DATASET = flags.DEFINE_enum(
    "dataset",
    "spoken_digits",
    ["spoken_digits", "speech_commands"],
    "spoken_digits needs no download",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "a folder of recordings, in place of --dataset (see above)"
)
_WORDS = flags.DEFINE_list("words", None, "the words to use, with commas. By default all")
_SPLIT = flags.DEFINE_enum(
    "split",
    None,
    ["take", "speaker", "recording"],
    "what is held out for testing: the first five takes of each word by each speaker, or a fifth "
    "of the speakers, or of the recordings. By default what the folder's lists or names give",
)
_FEATURES = flags.DEFINE_enum(
    "features", "log_mel", ["log_mel", "mfcc"], "what the network is given"
)
_SECONDS = flags.DEFINE_float(
    "seconds",
    1.0,
    "how much of a recording is heard: its middle",
    lower_bound=0.2,
    upper_bound=60.0,
)
_CONFUSION_FILE = flags.DEFINE_string(
    "confusion_file", None, "draw which word is taken for which into this file (.png, .svg)"
)
flags.adopt_module_key_flags(_example)
# Words are few: smaller batches make more steps of them.
flags.set_default(_example.BATCH_SIZE, 32)

_DEMONSTRATION = _training.Demonstration(seconds=18.0, fewest=10, most=100)
_CELLS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}


def build_model(input_shape: tuple[int, int, int], classes: int, seed: int) -> keras.Model:
    """The network that the flags ask for, compiled; one seed gives one model."""
    keras.utils.set_random_seed(seed)
    if _MODEL.value == "cnn":
        return _example.compiled(_networks.speech_cnn(input_shape, classes))
    cell = _CELLS[_MODEL.value]
    return _example.compiled(_networks.speech_recurrent(input_shape, classes, cell))


def is_demo() -> bool:
    """Whether this is the demonstration: a training of seconds on the repository's digits."""
    return _DATASET.value == "spoken_digits" and _DATA_DIR.value is None


def load_recordings() -> _speech_data.Recordings:
    """The recordings that the flags ask for.

    Raises:
        _speech_data.RecordingError: they can't be had or used.
    """
    words, seed = _WORDS.value, _example.SEED.value
    if _DATA_DIR.value is not None:
        return _speech_data.from_folder(_DATA_DIR.value, words, _SPLIT.value, seed)
    if _DATASET.value == "speech_commands":
        return _speech_data.speech_commands(words, _SPLIT.value, seed)
    return _speech_data.spoken_digits(words, seed)


def make_task(recordings: _speech_data.Recordings) -> _training.Task:
    """The training that the flags ask for, on these recordings."""
    frontend = _speech_features.Frontend(recordings.rate_hz, _FEATURES.value, _SECONDS.value)
    batch_size = _example.BATCH_SIZE.value
    batches = functools.partial(
        _speech_features.pipeline, recordings, frontend=frontend, batch_size=batch_size
    )

    def data(seed: int, samples: int | None) -> _training.Data:
        train = batches(recordings.train[:samples], shuffle_seed=seed)
        validation = batches(recordings.validation[:samples])
        test = batches(recordings.test)
        # Shuffled already, and Keras warns of a `shuffle` that it ignores.
        fit = {"x": train, "validation_data": validation, "shuffle": False}
        return _training.Data(fit, {"x": test})

    return _training.Task(
        name=recordings.name,
        title=f"{recordings}; {_SECONDS.value:g} s of each as {_FEATURES.value}",
        model_name=_MODEL.value,
        build=lambda seed: build_model(frontend.shape, len(recordings.label_names), seed),
        data=data,
        train_samples=len(recordings.train),
        test_samples=len(recordings.test),
        batch_size=batch_size,
        unit="recordings",
        demonstration=_DEMONSTRATION if is_demo() else None,
    )


def load_task() -> _training.Task:
    """What the flags ask for.

    Raises:
        _speech_data.RecordingError: the recordings can't be had or used.
    """
    return make_task(load_recordings())


def _pace(profiler: tfaccel.ProfilerCallback) -> str:
    """What ProfilerCallback says of the input, which is sound made to features on the way."""
    summary = profiler.summary()
    rate, share = summary["samples_per_sec"], summary["input_wait_share"]
    if rate is None or share is None:
        return "The training was too short to say how long it waited for its input."
    who = "the input sets the pace" if summary["input_bound"] else "the input keeps up"
    return f"{rate:,.0f} recordings/s, {share:.0%} of a step waiting for features: {who}."


def _say_mistakes(
    console: Console, task: _training.Task, recordings: _speech_data.Recordings, run: _training.Run
) -> None:
    """Which word is taken for which; drawn too, where a flag asks for it."""
    scores = run.model.predict(task.data(0, None).test["x"], verbose=0)
    labels, names = recordings.labels[recordings.test], recordings.label_names
    matrix = _confusion.confusion(labels, np.argmax(scores, axis=1), len(names))
    console.print(_confusion.most_confused(matrix, names))
    if _CONFUSION_FILE.value is not None:
        _confusion.draw(matrix, names, _CONFUSION_FILE.value)
        console.print(f"Drawn: {_CONFUSION_FILE.value}")


def _check_confusion_file() -> None:
    """Finds out before the training whether the picture can be drawn after it."""
    if _CONFUSION_FILE.value is None:
        return
    try:
        _picture.load_matplotlib()
    except ModuleNotFoundError as error:
        sys.exit(f"{error}")
    if not pathlib.Path(_CONFUSION_FILE.value).parent.is_dir():
        sys.exit(f"--confusion_file must lie in a folder. Received: {_CONFUSION_FILE.value}")


def main(argv: list[str]) -> None:
    """Trains as the flags say and prints what came of it."""
    _example.refuse_words(argv)
    if _DATA_DIR.value is not None and flags.FLAGS["dataset"].present:
        sys.exit("--dataset and --data_dir exclude each other: give one of them.")
    if is_demo() and _SPLIT.value not in (None, "speaker"):
        sys.exit("--split must be speaker for spoken_digits, where each speaker has one take.")
    _check_confusion_file()
    try:
        recordings = load_recordings()
    except (_speech_data.RecordingError, OSError) as error:
        sys.exit(f"{error}")
    console, task = Console(), make_task(recordings)
    profiler = _example.make_profiler() or tfaccel.ProfilerCallback(verbose=0)
    run = _example.run(task, console, profiler)
    console.print(_pace(profiler))
    _say_mistakes(console, task, recordings, run)


if __name__ == "__main__":
    app.run(main)
