"""Fixtures that several of these files use."""

import shutil
import zipfile

import pytest
from programs_run import FACTS, SPAWN

from tfaccel.launch import every_fit as every
from tfaccel.launch.fits import Fits
from tfaccel.launch.start import Options


@pytest.fixture
def folder(tmp_path):
    """A folder to work in, with a package and programs in other forms."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("print('package', __name__)\n")
    (package / "other.py").write_text("VALUE = 3\n")
    (package / "module.py").write_text("from . import other\n" + FACTS + "print(other.VALUE)\n")
    (package / "__main__.py").write_text("from .other import VALUE\n" + FACTS + "print(VALUE)\n")
    (package / "broken.py").write_text("import nowhere_to_be_found\n")
    (package / "spawning.py").write_text(SPAWN)
    (package / "failing.py").write_text("import sys\nsys.exit(5)\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "script.py").write_text(FACTS)
    (tmp_path / "link.py").symlink_to(tmp_path / "sub" / "script.py")
    shutil.copytree(package, tmp_path / "app")
    (tmp_path / "app" / "__main__.py").write_text(FACTS)
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as file:
        file.writestr("__main__.py", FACTS)
    return tmp_path


@pytest.fixture
def fits():
    """What `tfaccel run` has beside the fits of this test."""
    found = Fits(Options())
    with every.every_fit(found.begin):
        yield found
