"""What a sweep found for a program on this machine, for the runs after it."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

from tfaccel.launch.environment import PRELOAD
from tfaccel.launch.program import Program
from tfaccel.launch.sweep.settings import OF_THE_VERSION, VARIABLES
from tfaccel.system.cache_dir import default_directory, sweeps_directory
from tfaccel.system.cpu import CPUINFO, cpu_facts, usable_cores
from tfaccel.system.json_files import parsed, read_text, replace_text, to_text
from tfaccel.system.packages import tensorflow_version

SCHEMA = 1
_WHAT = "what a sweep found"


def keep(program: Program, environ: Mapping[str, str]) -> pathlib.Path:
    """Writes what won, also where that is nothing.

    Returns:
        The file.

    Raises:
        OSError: it can't be written.
    """
    path = _path(program)
    found = {
        "program": program.name,
        "environ": dict(environ),
        "tensorflow": tensorflow_version(),
    }
    replace_text(path, to_text(SCHEMA, found) + "\n")
    return path


def environ(program: Program) -> dict[str, str]:
    """What won for this program on this machine; empty where nothing is known, or of use."""
    path = _path(program)
    if not path.is_file():
        return {}
    try:
        with parsed(read_text(path), SCHEMA, _WHAT) as fields:
            found = {str(name): str(value) for name, value in fields["environ"].items()}
            measured_with = fields.get("tensorflow")
    except (OSError, ValueError):
        return {}
    if found.keys() & set(OF_THE_VERSION) and measured_with != tensorflow_version():
        # Another TensorFlow may end at a flag that it doesn't know.
        found = {name: value for name, value in found.items() if name not in OF_THE_VERSION}
    # An allocator may have been removed since: then the loader would complain at every start.
    return {
        name: value
        for name, value in found.items()
        if name in VARIABLES and (name != PRELOAD or os.path.isfile(value))
    }


def _path(program: Program) -> pathlib.Path:
    """One file for a program (a script by its place, a module by the folder it is run in)."""
    place = os.getcwd() if program.is_module else os.path.realpath(program.name)
    name = program.name if program.is_module else ""
    facts = cpu_facts(CPUINFO)
    machine = [facts.get(key, "") for key in ("model name", "flags", "Features")]
    words = json.dumps([place, name, *machine, usable_cores()])
    digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()
    return sweeps_directory(default_directory()) / f"{digest[:16]}.json"
