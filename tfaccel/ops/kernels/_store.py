"""Rankings that were measured on this machine, in memory and on disk."""

import dataclasses
import functools
import hashlib
import importlib.resources
import json
import os
import pathlib
from collections.abc import Iterable

import tensorflow as tf

from tfaccel.compat import onednn
from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.core.machine_class import MachineClass
from tfaccel.ops.kernels import _opencl, implementations
from tfaccel.ops.kernels._likely import Measured
from tfaccel.ops.kernels._opencl.devices import used_device
from tfaccel.ops.kernels._ranking import Ranking
from tfaccel.ops.kernels._registry import kernels
from tfaccel.ops.kernels._spec import CallSpec
from tfaccel.system import notices
from tfaccel.system.cache_dir import directory_at
from tfaccel.system.device import current_device
from tfaccel.system.json_files import parsed, read_text, replace_text, to_text

SCHEMA = 2


class Store:
    """Rankings of one machine, with one set of versions, in one file of a folder."""

    def __init__(self, directory: pathlib.Path):
        self.path = directory / f"kernels-{_machine_key()}.json"
        self._rankings: dict[CallSpec, Ranking] = {r.spec: r for r in self._read()}

    @staticmethod
    def at(directory: str | os.PathLike[str] | None = None) -> "Store":
        """The store in a folder, read once in a process; None for the default folder."""
        return _store(directory_at(directory).absolute())

    def ranking(self, spec: CallSpec) -> Ranking | None:
        """What is known of a call; None where it, or a kernel that exists now, was not measured.

        Sizes of the call that are not known fit those of any call that was measured; of
        several the last.
        """
        found = self._rankings.get(spec)
        if found is None and not spec.is_known:
            fitting = (r for s, r in reversed(self._rankings.items()) if s.fits(spec))
            found = next(fitting, None)
        return found if found is not None and _is_current(found) else None

    def rankings(self) -> list[Ranking]:
        """All rankings that hold for the kernels that exist now."""
        return [ranking for ranking in self._rankings.values() if _is_current(ranking)]

    def measured(self) -> list[Measured]:
        """The rankings as measurements, from which other calls are guessed."""
        machine = MachineClass.of(current_device())
        return [
            Measured(machine, ranking.spec, ranking.reference_seconds, ranking.speedups)
            for ranking in self.rankings()
        ]

    def add(self, ranking: Ranking) -> None:
        """Remembers a ranking, as the last one."""
        self._rankings.pop(ranking.spec, None)
        self._rankings[ranking.spec] = ranking

    def save(self) -> None:
        """Writes all that is settled, with what other processes have written meanwhile."""
        merged: dict[CallSpec, Ranking] = {}
        for ranking in (*self._read(), *self._rankings.values()):
            before = merged.get(ranking.spec)
            if ranking.complete or (ranking.is_settled and not (before and before.complete)):
                merged[ranking.spec] = ranking
        data = {"rankings": [r.to_dict() for r in merged.values()]}
        try:
            replace_text(self.path, to_text(SCHEMA, data, indent=None))
        except OSError as error:
            notices.warn(f"tfaccel could not keep its kernels' times: {error}", stacklevel=2)

    def _read(self) -> Iterable[Ranking]:
        try:
            text = read_text(self.path)
            with parsed(text, SCHEMA, "a list of kernels' times") as data:
                return [Ranking.from_dict(item) for item in data["rankings"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            notices.warn(f"tfaccel ignores {self.path}: {error}", stacklevel=2)
            return []


@functools.cache
def _store(directory: pathlib.Path) -> Store:
    return Store(directory)


def _is_current(ranking: Ranking) -> bool:
    now = {kernel.name for kernel in kernels(ranking.spec.op, ranking.spec.direction)}
    return now == {candidate.kernel for candidate in ranking.candidates}


def _sources() -> str:
    """A digest of the kernels' code: times that other code took no longer hold."""
    folders = (importlib.resources.files(package) for package in (implementations, _opencl))
    paths = [path for folder in folders for path in sorted(folder.iterdir(), key=str)]
    texts = [path.read_bytes() for path in paths if path.is_file()]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def _machine_key() -> str:
    """A digest of what decides how long a kernel takes."""
    device = current_device()
    used = (onednn_is_on(), onednn.obstacle() is None, used_device())
    machine = dataclasses.asdict(MachineClass.of(device))
    version = tf.__version__.rpartition(".")[0]
    parts = [_sources(), version, machine, device.cores, *used]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
