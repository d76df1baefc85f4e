"""The file of a saved model that says what the others hold."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.report import Report
from tfaccel.core.plan import Plan
from tfaccel.inference.engines.forward import Signature
from tfaccel.system.json_files import parsed, read_text, replace_text, to_text

SCHEMA = 1
MANIFEST = "tfaccel.json"
# The folder of TensorFlow's part, which turns strings into numbers for an engine.
WORDS = "words"
_WHAT = "a model that tfaccel saved"
_BLOCK_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Between:
    """The tensors that TensorFlow hands to an engine, of a model that reads strings.

    Attributes:
        names: in TensorFlow's part.
        inputs: the engine's names, in the same order.
        sizes: their shapes for the sample.
    """

    names: tuple[str, ...]
    inputs: tuple[tf.TensorSpec, ...]
    sizes: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """The object as JSON has it."""
        inputs = [_spec_to_json(spec) for spec in self.inputs]
        return {"names": self.names, "inputs": inputs, "sizes": self.sizes}

    @classmethod
    def from_json(cls, data: Any) -> "Between":
        """The object that `to_json` gave."""
        inputs = tuple(map(_spec_from_json, data["inputs"]))
        names = tuple(map(str, data["names"]))
        if len(names) != len(inputs):
            raise ValueError(f"{len(names)} names for {len(inputs)} tensors")
        return cls(names, inputs, _sizes_from_json(data["sizes"]))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of a saved model.

    Attributes:
        model: the Keras model's name.
        plan: that predictions are made under.
        report: what was tried, and what it won.
        x, y: the structures of inputs and outputs; a leaf is a place in the flattened structure.
        inputs, outputs: their specs.
        sizes: the shapes of the sample.
        files: the SHA-256 of every other file, by its path within the folder.
        between: the tensors that an engine gets from TensorFlow; None where it takes the inputs.
    """

    model: str
    plan: Plan
    report: Report
    x: Any
    y: Any
    inputs: tuple[tf.TensorSpec, ...]
    outputs: tuple[tf.TensorSpec, ...]
    sizes: tuple[tuple[int, ...], ...]
    files: dict[str, str]
    between: Between | None = None

    @property
    def names(self) -> list[str]:
        """The names of the inputs and then of the outputs."""
        return [str(spec.name) for spec in (*self.inputs, *self.outputs)]

    @classmethod
    def of(
        cls,
        folder: pathlib.Path,
        model: str,
        report: Report,
        x: Any,
        signature: Signature,
        between: Between | None = None,
    ) -> "Manifest":
        """The manifest of a folder whose other files are written.

        Args:
            folder: where they are.
            model: its name.
            report: with the plan.
            x: inputs, in the user's structure.
            signature: of what was written.
            between: the tensors that an engine gets, where TensorFlow reads the inputs.
        """
        places = keras.tree.pack_sequence_as(x, list(range(len(signature.inputs))))
        digests = {str(path.relative_to(folder)): digest(path) for path in files_of(folder)}
        return cls(
            model,
            report.plan,
            report,
            places,
            signature.structure,
            signature.inputs,
            signature.outputs,
            signature.sizes,
            digests,
            between,
        )

    def write(self, folder: pathlib.Path) -> None:
        """Writes it beside the files that it names."""
        fields = {
            "model": self.model,
            "plan": json.loads(self.plan.to_json()),
            "x": _structure_to_json(self.x),
            "y": _structure_to_json(self.y),
            "inputs": [_spec_to_json(spec) for spec in self.inputs],
            "outputs": [_spec_to_json(spec) for spec in self.outputs],
            "sizes": self.sizes,
            "files": self.files,
            "between": None if self.between is None else self.between.to_json(),
            "report": self.report.to_dict(),
        }
        replace_text(folder / MANIFEST, to_text(SCHEMA, fields) + "\n")

    @classmethod
    def read(cls, folder: pathlib.Path) -> "Manifest":
        """Reads the manifest, and checks that every file is there and as it was written.

        Raises:
            ValueError: the folder holds no saved model, or a damaged one; the message says what.
        """
        try:
            found = cls._from_text(read_text(folder / MANIFEST))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is not {_WHAT}: {MANIFEST}: {error}") from error
        _check_files(folder, found.files)
        return found

    @classmethod
    def _from_text(cls, text: str) -> "Manifest":
        with parsed(text, SCHEMA, "a manifest") as data:
            found = cls(
                str(data["model"]),
                Plan.from_json(json.dumps(data["plan"])),
                Report.from_json(json.dumps(data["report"])),
                _structure_from_json(data["x"]),
                _structure_from_json(data["y"]),
                tuple(map(_spec_from_json, data["inputs"])),
                tuple(map(_spec_from_json, data["outputs"])),
                _sizes_from_json(data["sizes"]),
                {str(path): str(sha) for path, sha in data["files"].items()},
                Between.from_json(data["between"]) if data.get("between") else None,
            )
            _check_places(found)
        return found


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Every file in a folder, less the manifest."""
    every = sorted(folder.rglob("*"))
    links = [path for path in every if path.is_symlink()]
    if links:
        raise ValueError(f"{links[0]} is a link: a saved model is in its folder alone")
    found = (path for path in every if path.is_file())
    return [path for path in found if path != folder / MANIFEST]


def digest(path: pathlib.Path) -> str:
    """A file's SHA-256."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()


def _check_files(folder: pathlib.Path, files: dict[str, str]) -> None:
    present = {str(path.relative_to(folder)): path for path in files_of(folder)}
    if not files:
        raise ValueError(f"{folder} is damaged: {MANIFEST} names no files")
    for name, expected in files.items():
        if name not in present:
            raise ValueError(f"{folder} is damaged: {name} is missing")
        if digest(present[name]) != expected:
            raise ValueError(f"{folder} is damaged: {name} is not what was written")


def _check_places(found: Manifest) -> None:
    for structure, specs in ((found.x, found.inputs), (found.y, found.outputs)):
        places = keras.tree.flatten(structure)
        if sorted(places) != list(range(len(specs))):
            raise ValueError(f"{len(specs)} tensors at the places {places}")


def _structure_to_json(structure: Any) -> Any:
    if isinstance(structure, int):
        return structure
    if isinstance(structure, dict):
        if not all(isinstance(key, str) for key in structure):
            raise ValueError(f"keys of a saved structure must be strings. Received: {structure}")
        return {"dict": {key: _structure_to_json(value) for key, value in structure.items()}}
    if type(structure) in (list, tuple):
        kind = type(structure).__name__
        return {kind: [_structure_to_json(value) for value in structure]}
    raise ValueError(
        "inputs and outputs must be in dicts, lists and tuples to be saved. "
        f"Received: {type(structure).__name__}"
    )


def _structure_from_json(data: Any) -> Any:
    if isinstance(data, int):
        return data
    ((kind, parts),) = data.items()
    if kind == "dict":
        return {key: _structure_from_json(value) for key, value in parts.items()}
    found = [_structure_from_json(value) for value in parts]
    return found if kind == "list" else tuple(found)


def _spec_to_json(spec: tf.TensorSpec) -> dict[str, Any]:
    shape = None if spec.shape.rank is None else spec.shape.as_list()
    return {"name": spec.name, "shape": shape, "dtype": spec.dtype.name}


def _spec_from_json(data: Any) -> tf.TensorSpec:
    return tf.TensorSpec(data["shape"], data["dtype"], str(data["name"]))


def _sizes_from_json(data: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, size)) for size in data)
