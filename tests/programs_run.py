"""Programs that `tfaccel run` starts."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
RUN = ("-m", "tfaccel", "run")


PROGRAM = """
import keras, numpy as np
keras.utils.set_random_seed(1)
x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
model.compile("sgd", "mse")
for _ in range(2):
    print(model.fit(x, x[:, :1], 8, 2, 0).history)
print(model.predict(x[:1], verbose=0))
"""

FACTS = """
'''A program that tells what it finds.'''
import atexit, builtins, sys
main = sys.modules["__main__"]
print(__name__, __file__, __package__, __doc__, sys.argv, sys.path)
print(type(__loader__).__name__, getattr(__spec__, "name", None), __builtins__ is builtins)
print(vars(main) is globals(), __cached__ is None)
print({"tensorflow", "keras", "numpy", "rich", "importlib.metadata"} & set(sys.modules))
"""


SPAWN = """
import multiprocessing
def double(x): return 2 * x
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        print(pool.map(double, [1, 2]))
"""


def ended(words, folder, stdin="", environ=()):
    """The status of a process, and what it printed."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict(environ)},
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr
