"""profile.jsonl: whatever happens to disk or process, training goes on and the file reads."""

import collections
import errno
import json
import os
import pathlib
import re
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf

from tfaccel.profiling import records
from tfaccel.profiling.records import JsonLines, plain, read_records

ROOT = pathlib.Path(__file__).parent.parent
RUN = {"kind": "run", "schema": 1}
FULL = pathlib.Path("/dev/full")  # a disk that is full, as the kernel plays it


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "profile.jsonl"


def write(path, *items):
    lines = JsonLines(path)
    for item in items:
        lines.write(item)
    lines.close()


def parsed(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class Warned(list):
    """Stands for `warnings.warn`."""

    def __call__(self, message, category, stacklevel):
        self.append((message, category))


def test_records_come_back_by_their_kinds(path):
    kinds = ("trace", "tuning", "comparison", "interval", "ops")
    write(
        path, RUN, *({"kind": kind, "step": 7} for kind in kinds), {"kind": "summary", "steps": 9}
    )
    found = read_records(path)
    assert found.run == RUN
    for kind, held in zip(
        kinds,
        (found.traces, found.tuning, found.comparisons, found.intervals, found.ops),
        strict=True,
    ):
        assert held == [{"kind": kind, "step": 7}]
    assert found.summary == {"kind": "summary", "steps": 9}
    assert (found.earlier, found.skipped) == ((), 0)


def test_each_record_is_on_the_disk_at_once(path):
    lines = JsonLines(path)
    lines.write(RUN)
    assert parsed(path) == [RUN]
    lines.write({"kind": "interval"})
    assert len(parsed(path)) == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (np.float32("inf"), None),
        (np.array([1.0, -np.inf]), [1.0, None]),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (tf.constant(1.5), 1.5),
        (tf.constant([1, 2]), [1, 2]),
        (tf.Variable(2.0), 2.0),
        (tf.constant(1.5, tf.bfloat16), 1.5),
        (tf.constant("name"), "name"),
        ((1, {"a": np.int8(2)}), [1, {"a": 2}]),
        (collections.OrderedDict({1: "x"}), {"1": "x"}),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (None, None),
        (False, False),
    ],
    ids=repr,
)
def test_values_become_plain_ones(value, expected):
    found = plain({"value": value})["value"]
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)


def test_a_symbolic_tensor_is_no_error():
    seen = []

    @tf.function
    def traced(x):
        seen.append(plain(x))

    traced(tf.constant(1.0))
    assert isinstance(seen[0], str)


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path):
    (tmp_path / "file").write_text("")
    path, warned = tmp_path / "file" / "run" / "profile.jsonl", Warned()
    lines = JsonLines(path, warned)
    for _ in range(3):
        lines.write(RUN)
    lines.close()
    [(message, category)] = warned
    assert str(path) in message
    assert category is RuntimeWarning


def test_the_warning_is_pythons_own_and_names_the_caller(tmp_path):
    (tmp_path / "file").write_text("")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write(tmp_path / "file" / "profile.jsonl", RUN, RUN)
    assert [item.category for item in caught] == [RuntimeWarning]
    assert caught[0].filename == __file__


def test_a_path_that_no_system_takes_is_a_warning():
    warned = Warned()
    JsonLines("a\0b/profile.jsonl", warned).write(RUN)
    assert len(warned) == 1


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux")
def test_a_full_disk_is_a_warning():
    warned = Warned()
    lines = JsonLines(FULL, warned)
    for _ in range(3):
        lines.write(RUN)
    lines.close()
    assert len(warned) == 1
    assert os.strerror(errno.ENOSPC) in warned[0][0]


class FillingFile:
    """A file on a disk that takes `room` more bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.fixture
def opened(monkeypatch):
    """Has the files that records are written to be of this class, and lists them."""

    def as_files_of(kind, room):
        made = []

        def opening(path, mode, **options):
            file = open(path, mode, **options)  # noqa: SIM115 (closed by who writes)
            if mode == "rb":
                return file
            made.append(kind(file, room))
            return made[-1]

        monkeypatch.setattr(records, "open", opening, raising=False)
        return made

    return as_files_of


def test_a_line_cut_off_by_a_full_disk_spoils_no_other(path, opened):
    warned = Warned()
    lines = JsonLines(path, warned)
    files = opened(FillingFile, 1000)
    lines.write(RUN)
    (disk,) = files
    disk.room = 10
    lines.write({"kind": "interval", "step": 1})
    lines.write({"kind": "interval", "step": 2})
    assert not path.read_bytes().endswith(b"\n")
    disk.room = 1000  # somebody made room
    lines.write({"kind": "interval", "step": 3})
    lines.write({"kind": "interval", "step": 4})
    lines.close()
    found = read_records(path)
    assert [record["step"] for record in found.intervals] == [3, 4]
    assert found.skipped == 1
    assert len(warned) == 1


def test_a_write_that_takes_a_part_at_a_time_is_whole(path, opened):
    lines = JsonLines(path)

    class Slow(FillingFile):
        def write(self, data):
            return self.file.write(data[:3])

    opened(Slow, 0)
    lines.write(RUN)
    lines.write({"kind": "interval", "step": 1})
    lines.write({"kind": "interval", "step": 2})
    assert [record.get("step") for record in parsed(path)] == [None, 1, 2]


@pytest.mark.skipif(
    sys.platform == "win32" or getattr(os, "geteuid", int)() == 0, reason="root may write anywhere"
)
def test_a_folder_without_permission_is_a_warning(tmp_path):
    tmp_path.chmod(0o500)
    warned = Warned()
    JsonLines(tmp_path / "profile.jsonl", warned).write(RUN)
    tmp_path.chmod(0o700)
    assert len(warned) == 1


def test_a_killed_process_leaves_all_but_its_last_line(path):
    write(path, RUN, {"kind": "interval", "step": 1}, {"kind": "interval", "step": 2})
    whole = path.read_bytes()
    starts = whole.rindex(b"\n", 0, -1) + 1
    for length in range(starts + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        found = read_records(path)
        assert [record["step"] for record in found.intervals] == [1]
        assert found.skipped == 1


def test_the_next_run_closes_off_what_a_killed_one_left(path):
    write(path, RUN, {"kind": "interval", "step": 1})
    path.write_bytes(path.read_bytes()[:-5])
    write(path, RUN | {"batch_size": 8}, {"kind": "interval", "step": 2})
    found = read_records(path)
    assert found.run["batch_size"] == 8
    assert [record["step"] for record in found.intervals] == [2]
    assert found.earlier[0].intervals == []
    assert found.skipped == 1


def test_the_last_run_is_read_and_the_others_are_at_hand(path):
    for batch_size in (8, 16, 32):
        write(path, RUN | {"batch_size": batch_size}, {"kind": "interval", "step": batch_size})
    found = read_records(path)
    assert found.run["batch_size"] == 32
    assert [record["step"] for record in found.intervals] == [32]
    assert [run.run["batch_size"] for run in found.earlier] == [8, 16]
    assert [run.intervals[0]["step"] for run in found.earlier] == [8, 16]


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind": "dream"}',
        b'{"kind": ["interval"]}',
        b"[1, 2]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"step": 1}',
    ],
    ids=lambda line: line[:12].decode("latin-1"),
)
def test_lines_that_are_no_known_record_are_counted(path, line):
    write(path, RUN)
    with path.open("ab") as file:
        file.write(line + b"\n\n   \n" + b'{"kind": "interval", "time/step_ms": NaN}\n')
    found = read_records(path)
    assert found.skipped == 1
    assert found.intervals == [{"kind": "interval", "time/step_ms": None}]


@pytest.mark.parametrize("text", ["", "hello\n", '{"kind": "interval"}\n', "{}\n"])
def test_a_file_without_a_run_says_what_it_should_be(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="ProfilerCallback") as error:
        read_records(path)
    assert str(path) in str(error.value)


def test_a_newer_schema_is_refused(path):
    write(path, {"kind": "run", "schema": 2})
    with pytest.raises(ValueError, match="schema 1. Received: 2"):
        read_records(path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (2.5, 2.5), (None, None), ("3", None), (True, None), (10**400, None), ([], None)],
)
def test_number(value, expected):
    assert records.number({"key": value}, "key") == expected


def test_the_documentation_has_every_kind():
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\n### `(\w+)`\n", text)) == set(records.KINDS)
