"""Plans that won before, on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.report import Report
from tfaccel.core.machine_class import MachineClass
from tfaccel.core.plan import suited_pass
from tfaccel.core.workload import Workload, shapes
from tfaccel.measure.numerics import Tolerance
from tfaccel.system import notices
from tfaccel.system.cache_dir import directory_at
from tfaccel.system.json_files import parsed, read_text, replace_text, to_text
from tfaccel.system.later import later
from tfaccel.system.open_folders import warn_if_open

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.autotune.expected import evidence as evidences
else:
    evidences = later("tfaccel.autotune.expected.evidence")

SCHEMA = 1
# The most files that are read for evidence, the latest ones, which takes some milliseconds.
_MOST_READ = 64
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class PlanCache:
    """One JSON file for each kind of workload that was tuned.

    Files are written beside their place and moved into it, so that a reader sees
    a whole file or none, and two processes that write at once lose nothing.

    Args:
        directory: the folder; None for `default_directory()`. It is made when needed.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        self.directory = directory_at(directory)
        self._told = False  # that the folder can't be used: reading and writing fail alike

    def has_plans(self) -> bool:
        """Whether any plan is kept: where none is, no key need be made."""
        try:
            names = os.listdir(self.directory)
        except OSError:
            return False
        return any(name.endswith(".json") and not name.startswith("kernels-") for name in names)

    def load(self, key: str) -> Report | None:
        """The report kept for a key; all but a whole, current file is ignored with a warning."""
        path = self.path_of(key)
        warn_if_open(self.directory)
        try:
            with parsed(read_text(path), SCHEMA, "a plan of the cache") as data:
                if data["key"] != key:
                    raise ValueError("it is of another workload")
                return Report.from_json(json.dumps(data["report"]))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell(f"tfaccel ignores the cached plan {path}: {error}")
        except ValueError as error:
            notices.warn(f"tfaccel ignores the cached plan {path}: {error}", stacklevel=2)
        return None

    def save(self, key: str, report: Report, evidence: Iterable[evidences.Evidence] = ()) -> None:
        """Keeps a report; a failure (a full disk, a read-only folder) is a warning.

        Args:
            key: of the workload.
            report: what tuning found.
            evidence: the measurements in it, for other workloads.
        """
        seen = [one.to_dict() for one in evidence]
        kept = {"key": key, "report": report.to_dict(), "evidence": seen}
        text = to_text(SCHEMA, kept, indent=None)
        try:
            replace_text(self.path_of(key), text)
        except OSError as error:
            self._tell(f"tfaccel could not keep the plan in {self.directory}: {error}")

    def _tell(self, said: str) -> None:
        if not self._told:
            self._told = True
            notices.warn(said, stacklevel=3)

    def evidence(self) -> list[evidences.Evidence]:
        """The measurements in the latest files that can be read, for other workloads."""
        found: list[evidences.Evidence] = []
        with contextlib.suppress(OSError):
            paths = sorted(self.directory.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for path in paths[-_MOST_READ:]:
                with (
                    contextlib.suppress(OSError, ValueError),
                    parsed(read_text(path), SCHEMA, "a plan of the cache") as data,
                ):
                    found += [evidences.Evidence.from_dict(one) for one in data.get("evidence", ())]
        return found

    def path_of(self, key: str) -> pathlib.Path:
        """The file of a workload's plan, which need not exist."""
        return self.directory / f"{key}.json"


def workload_key(
    workload: Workload, names: Collection[str], tolerance: Tolerance | float | None
) -> str:
    """A digest of all that decides which plan wins.

    Model structure, optimizer, loss, batch signature, device, versions, what the user
    allowed, and what each pass adds: a plan that won in a fit without a callback at every
    batch is not for one with it. Names that Keras numbers within a process, learning rates and
    weights are left out, so that the same script finds its plan again. Plans for
    predictions have keys of their own.
    """
    model = workload.model
    keys = [(name, suited_pass(name, workload).cache_key(workload)) for name in names]
    parts = {
        # Not tfaccel's own: a plan from the cache is compared with the original step first.
        "versions": [_minor(tf.__version__), _minor(keras.__version__)],
        "machine": [MachineClass.of(workload.device), workload.device.cores],
        "model": _structure(workload),
        "strategy": [type(model.distribute_strategy).__name__, workload.num_replicas],
        "compiled": [bool(model.jit_compile), model.steps_per_execution],
        "optimizers": [_optimizer(optimizer) for optimizer in workload.optimizers],
        "loss": _described(model.loss),
        "batch": [str(workload.element_spec), shapes(workload.batches[0])],
        "allowed": [list(names), str(tolerance)],
        "passes": {name: key for name, key in keys if key is not None},
    }
    if weights := _loss_weights(model):
        parts["loss_weights"] = weights
    if workload.sizes_vary:
        parts["sizes"] = "vary"
    if not workload.training:
        parts["work"] = "predictions"
        parts["optimize"] = workload.optimize
    if workload.allow:
        parts["allow"] = sorted(workload.allow)
    text = json.dumps(parts, sort_keys=True, default=_described)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _loss_weights(model: keras.Model) -> Any:
    """The weights of the losses of several outputs; None where all are alike."""
    try:
        config = model.get_compile_config()
    except Exception:  # a loss or a metric that can't be written down
        return None
    return (config or {}).get("loss_weights")


def _minor(version: str) -> str:
    """A version without its last number: such releases mend faults and change no speed."""
    return ".".join(version.split(".")[:2])


def _described(value: Any) -> str:
    """A value as text that is the same in another process."""
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "get_config"):
        return f"{type(value).__qualname__}{_ADDRESS.sub('', str(value.get_config()))}"
    return _ADDRESS.sub("", str(value))


def _structure(workload: Workload) -> list[Any]:
    numbered = {layer.name: f"#{index}" for index, layer in enumerate(workload.layers)}
    return [
        [
            f"{type(layer).__module__}.{type(layer).__qualname__}",
            layer.trainable,
            str(layer.dtype_policy),
            [[list(weight.shape), str(weight.dtype)] for weight in layer.weights],
            _without_names(_config(layer), numbered),
        ]
        for layer in workload.layers
    ]


def _config(layer: keras.layers.Layer) -> Any:
    """The layer's config; a layer of the user's own may have none."""
    try:
        return layer.get_config()
    except Exception:
        return None


def _without_names(value: Any, numbered: dict[str, str]) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != "name"}
        return {str(k): _without_names(v, numbered) for k, v in kept.items()}
    if isinstance(value, list | tuple):
        return [_without_names(item, numbered) for item in value]
    if isinstance(value, str):
        return numbered.get(value, value)
    return value if isinstance(value, int | float | bool | None) else _described(value)


def _optimizer(optimizer: keras.optimizers.Optimizer) -> list[str]:
    config = {k: v for k, v in optimizer.get_config().items() if k not in ("name", "learning_rate")}
    return [type(optimizer).__qualname__, _described(config)]
