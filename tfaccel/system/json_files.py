"""JSON that tfaccel writes and reads back: whole files, of a known schema, or a clear error."""

import collections.abc
import contextlib
import functools
import json
import os
import pathlib
import re
import secrets
import stat
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")
# No number of tfaccel's own is as large.
_LARGE = 2**63
# More than tfaccel ever writes to a file that it reads back whole.
MOST_BYTES = 64 * 2**20
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
# What reading a value of another kind, or one that is too deep or too large, raises.
_OTHERWISE = (TypeError, AttributeError, LookupError, RecursionError, OverflowError)


def read_text(path: str | os.PathLike[str]) -> str:
    """What is in a file that tfaccel wrote.

    Raises:
        OSError: it can't be read.
        ValueError: it is no file (a pipe would never end), larger than `MOST_BYTES`, or no text.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"{os.fspath(path)} is no file")
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{os.fspath(path)} has more than {MOST_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} holds no text") from error


def typed(value: T) -> T:
    """A dataclass's instance, each of whose fields is what its annotation says; else TypeError."""
    kind: Any = type(value)
    hints = _hints(kind)
    for name in getattr(type(value), "__dataclass_fields__", ()):
        found = getattr(value, name)
        if name in hints and not _fits(found, hints[name]):
            raise TypeError(f"`{name}` must be {hints[name]}. Received: {str(found)[:100]!r}")
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError:  # of somebody's own, whose annotations name what is not there
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; True where it says what is not known here."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        parts = args[:1] * len(value) if args[-1:] == (...,) else args
        return (
            isinstance(value, tuple) and len(parts) == len(value) and all(map(_fits, value, parts))
        )
    if origin in (dict, collections.abc.Mapping):
        items = value.items() if isinstance(value, dict) else ((None, None),)
        return all(_fits(key, args[0]) and _fits(item, args[1]) for key, item in items)
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float)
        small = isinstance(value, float) or (number and abs(value) < _LARGE)
        return number and small and not isinstance(value, bool)
    if hint is list:  # which a frozen pass has as a tuple
        return isinstance(value, list | tuple)
    return isinstance(value, hint) if origin is None and isinstance(hint, type) else True


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file beside its place and moves it there; folders are made.

    A reader sees a whole file or none, and two processes that write at once lose nothing but one
    of two whole files. What is no file (a terminal, a pipe) is written to. After an OSError what
    was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve()  # a link stays one
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        # Read and written by whom any new file of the user's is.
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        raise


def partial_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """What processes left in a folder that were killed in `replace_text`, or write just now."""
    return [path for path in folder.glob(".*.tmp") if _PARTIAL.fullmatch(path.name)]


def to_text(schema: int, fields: dict[str, Any], indent: int | None = 2) -> str:
    """Fields as JSON text that `parsed` reads; `indent` as in `json.dumps`."""
    return json.dumps({"schema": schema} | fields, indent=indent)


@contextlib.contextmanager
def parsed(text: str, schema: int, what: str) -> Iterator[dict[str, Any]]:
    """Gives the fields of JSON text, less the schema; what the block lacks is an error of the text.

    ValueError, with what the text should be (`what`, such as "a tfaccel plan"), where it is
    something else, of another schema, or lacks what the block reads.

    >>> with parsed('{"schema": 1, "size": 3}', 1, "a size") as fields:
    ...     fields["size"]
    3
    """
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise TypeError("it is no JSON object")
        found = fields.pop("schema")
        if found != schema:
            raise ValueError(f"the schema of {what} must be {schema}. Received: {found!r}")
        yield fields
    except (*_OTHERWISE, json.JSONDecodeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"This is not {what}: {why}. Received: {text[:200]!r}") from error
