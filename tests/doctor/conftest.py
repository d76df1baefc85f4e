"""Surroundings in which all is well, but for what a test changes."""

import pytest
from machines import GIB, X86_FLAGS, FakePackages, FakeTensorFlow, write

from tfaccel.cli.doctor._surroundings import Surroundings


@pytest.fixture
def surroundings(tmp_path):
    """Makes surroundings in which all is well, but for what a test changes."""
    write(tmp_path, "proc/cpuinfo", f"model name\t: Some Chip 9000\nflags\t\t: {X86_FLAGS}\n")
    write(tmp_path, "proc/meminfo", "MemTotal:  16777216 kB\nMemAvailable:  8388608 kB\n")

    def make(files=(), environ=(), packages=None, run=lambda words: None, **said):
        for name, text in dict(files).items():
            write(tmp_path, name, text)
        return Surroundings(
            root=tmp_path,
            environ=dict(environ),
            packages=packages or FakePackages({"tensorflow": "2.21.0"}),
            tensorflow=FakeTensorFlow(said),
            run=run,
            cores=4,
            machine_cores=8,
            load=lambda: 0.5,
            free_bytes=lambda path: 5 * GIB,
            cache_directory=tmp_path / "plans",
            working_directory=tmp_path,
            sizes={"CPU": 8, "GPU": 8},
        )

    return make
