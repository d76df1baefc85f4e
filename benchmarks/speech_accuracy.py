"""Whether examples/speech_classifier.py ends up as good with tfaccel as without.

The example's flags choose model and data:

    python benchmarks/speech_accuracy.py --data_dir recordings --epochs 20
"""

import _accuracy
import _example
import speech_classifier
from absl import app, flags

flags.adopt_module_key_flags(_accuracy)
flags.adopt_module_key_flags(speech_classifier)


def main(argv: list[str]) -> None:
    _example.refuse_words(argv)
    _accuracy.measure(speech_classifier.load_task)


if __name__ == "__main__":
    app.run(main)
