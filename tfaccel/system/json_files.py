"""JSON that tfaccel writes and reads back: whole files, of a known schema, or a clear error."""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any


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
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"This is not {what}: {why}. Received: {text[:200]!r}") from error
