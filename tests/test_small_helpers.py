"""What several folders share: whole files, texts of a known schema, numbers, arguments."""

import os
import stat

import numpy as np
import pytest
import tensorflow as tf

from tfaccel.core.plan import Plan
from tfaccel.measure import finite
from tfaccel.system.arguments import is_positive, positive
from tfaccel.system.json_files import parsed, replace_text, to_text

NAN = float("nan")


def test_a_file_is_written_whole_with_the_user_s_permissions(tmp_path):
    path = tmp_path / "made" / "plan.json"
    before = os.umask(0o027)
    try:
        replace_text(path, "one")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    replace_text(path, "other")
    assert path.read_text() == "other"
    assert os.listdir(path.parent) == ["plan.json"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    replace_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


def test_what_was_there_stays_where_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    replace_text(path, "before")

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        Plan().save(path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["plan.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"schema": 2, "size": 3}', '{"schema": 1}']
)
def test_another_text_is_told_so(text):
    with pytest.raises(ValueError, match="a size"), parsed(text, 1, "a size") as fields:
        fields["size"]


def test_a_text_comes_back():
    with parsed(to_text(1, {"size": 3}), 1, "a size") as fields:
        assert fields == {"size": 3}


@pytest.mark.parametrize("value", [1, np.int64(3)])
def test_a_positive_whole_number(value):
    assert is_positive(value) and positive("size", value) == value


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "1", np.float32(2)])
def test_no_positive_whole_number(value):
    assert not is_positive(value)
    with pytest.raises(ValueError, match="`size` must be a positive whole number. Received: "):
        positive("size", value)


@pytest.mark.parametrize(
    ("value", "is_finite"),
    [
        (1.0, True),
        (NAN, False),
        (np.array([1, 2]), True),
        (tf.constant([1.0, NAN]), False),
        ({"a": [1.0, tf.constant(np.inf)]}, False),
        ((), True),
    ],
)
def test_all_finite(value, is_finite):
    assert finite.all_finite(value) == is_finite
    tensors = tf.nest.map_structure(tf.convert_to_tensor, value)
    assert bool(finite.all_finite_in_graph(tensors)) == is_finite


def test_finite_where_the_reference_is():
    reference = np.array([1.0, NAN])
    assert finite.finite_where(reference, np.array([2.0, 1.0]))
    assert not finite.finite_where(reference, np.array([NAN, 1.0]))
