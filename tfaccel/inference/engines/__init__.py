"""Engines for predictions beside TensorFlow. Adding one: its file, a line in ENGINES, a section
in docs/inference.md, an extra in setup.cfg."""

from tfaccel.inference.engines.engine import EIGHT_BITS, Engine, Runner
from tfaccel.inference.engines.engine_function import EngineFunction, ServedFunction, engine_of
from tfaccel.inference.engines.forward import Forward
from tfaccel.inference.engines.onnxruntime import ONNXRuntime
from tfaccel.inference.engines.openvino import OpenVINO
from tfaccel.inference.engines.words import has_words
from tfaccel.inference.engines.words_function import WordsFunction, WordsRunner

ENGINES: tuple[type[Engine], ...] = (OpenVINO, ONNXRuntime)

__all__ = [
    "EIGHT_BITS",
    "ENGINES",
    "Engine",
    "EngineFunction",
    "Forward",
    "ONNXRuntime",
    "OpenVINO",
    "Runner",
    "ServedFunction",
    "WordsFunction",
    "WordsRunner",
    "engine_of",
    "has_words",
]
