"""Plans and kernels' times in one file, for other machines of the same class."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
from typing import Any

import tensorflow as tf

from tfaccel.autotune.report import Report
from tfaccel.core.machine_class import MachineClass
from tfaccel.ops.kernels import Ranking, Store
from tfaccel.system.cache_dir import compiled_directory, directory_at, sweeps_directory
from tfaccel.system.device import current_device
from tfaccel.system.json_files import parsed, partial_files, read_text, replace_text, to_text

SCHEMA = 1
_WHAT = "a tfaccel cache"
# The names of plans' files, none of which leads out of the folder.
_FILE_NAME = re.compile(r"[0-9A-Za-z_-]{1,100}\.json")


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a cache holds.

    Attributes:
        plans: the whole files of plans, as JSON values, by name.
        rankings: kernels' times of this machine.
        foreign: files of kernels' times of other machines or versions.
        folder: where it is.
    """

    plans: dict[str, dict[str, Any]]
    rankings: tuple[Ranking, ...]
    foreign: tuple[str, ...]
    folder: pathlib.Path


def contents(directory: str | os.PathLike[str] | None = None) -> Contents:
    """The contents of a folder, without files that are not tfaccel's.

    Args:
        directory: the folder; None for the default one.
    """
    folder = directory_at(directory)
    plans, foreign, store = {}, [], Store(folder)
    for path in sorted(folder.glob("*.json")):
        data = _plan(path)
        if data is not None:
            plans[path.name] = data
        elif path.name.startswith("kernels-") and path.name != store.path.name:
            foreign.append(path.name)
    return Contents(plans, tuple(store.rankings()), tuple(foreign), folder)


def export_cache(path: pathlib.Path, found: Contents) -> None:
    """Writes what a cache holds to one file.

    Raises:
        OSError: the file can't be written.
    """
    kept = {
        "machine": this_machine(),
        "plans": found.plans,
        "rankings": [ranking.to_dict() for ranking in found.rankings],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, to_text(SCHEMA, kept) + "\n")


def import_cache(path: pathlib.Path, found: Contents) -> tuple[int, int]:
    """Adds what a file holds to a cache. What is there already stays.

    Args:
        path: a file that `export_cache` wrote.
        found: the cache.

    Returns:
        How many plans and how many rankings were added.

    Raises:
        ValueError: the file is no exported cache, or is from another class of machine, whose
            times do not hold here.
        OSError: the file can't be read, or the cache can't be written.
    """
    with parsed(read_text(path), SCHEMA, _WHAT) as data:
        machine, plans = data["machine"], data["plans"]
        rankings = [Ranking.from_dict(item) for item in data["rankings"]]
        if not all(map(_FILE_NAME.fullmatch, plans)):
            raise ValueError("a plan's name is no name of a file")
        for plan in plans.values():
            Report.from_json(json.dumps(plan["report"]))
    if machine != this_machine():
        raise ValueError(
            f"{path} comes from another class of machine: {_words(machine)}; this one is "
            f"{_words(this_machine())}"
        )
    new = {name: plan for name, plan in plans.items() if name not in found.plans}
    found.folder.mkdir(parents=True, exist_ok=True)
    for name, plan in new.items():
        replace_text(found.folder / name, json.dumps(plan))
    known = {ranking.spec for ranking in found.rankings}
    added = [ranking for ranking in rankings if ranking.spec not in known]
    store = Store(found.folder)
    for ranking in added:
        store.add(ranking)
    if added:
        store.save()
    return len(new), len(added)


def clear_cache(found: Contents) -> int:
    """Removes plans, kernels' times (other machines' too), and all else that is kept.

    That is what sweeps found, what engines for predictions compiled, and what processes left
    that were killed while they wrote.

    Returns:
        How many files there were.
    """
    names = [*found.plans, *found.foreign, Store(found.folder).path.name]
    sweeps = sweeps_directory(found.folder)
    compiled = compiled_directory(found.folder)
    made = [path for path in compiled.rglob("*") if path.is_file()]
    partial = [*partial_files(found.folder), *partial_files(sweeps)]
    paths = [*(found.folder / name for name in names), *sweeps.glob("*.json"), *partial, *made]
    removed = [path for path in paths if path.exists()]
    for path in removed:
        path.unlink(missing_ok=True)  # another process may write, or clear, at the same time
    shutil.rmtree(compiled, ignore_errors=True)  # the folders
    return len(removed)


def _plan(path: pathlib.Path) -> dict[str, Any] | None:
    """The JSON value in a file of a plan; None where it is none."""
    try:
        data = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and {"key", "report"} <= data.keys() else None


def this_machine() -> dict[str, Any]:
    """What must be the same for times to hold, as JSON values."""
    device = current_device()
    machine = dataclasses.asdict(MachineClass.of(device))
    version = ".".join(tf.__version__.split(".")[:2])
    return json.loads(json.dumps({**machine, "cores": device.cores, "tensorflow": version}))


def _words(machine: Any) -> str:
    if not isinstance(machine, dict):
        return "of an unknown kind"
    return ", ".join(f"{key} {value}" for key, value in machine.items())
