"""Whether examples/image_classifier.py ends up as good with tfaccel as without.

The example's flags choose model and data:

    python benchmarks/accuracy.py --model resnet --data_file images.npz --epochs 20
"""

import _accuracy
import _example
import image_classifier
from absl import app, flags

flags.adopt_module_key_flags(_accuracy)
flags.adopt_module_key_flags(image_classifier)


def main(argv: list[str]) -> None:
    _example.refuse_words(argv)
    _accuracy.measure(image_classifier.load_task)


if __name__ == "__main__":
    app.run(main)
