"""What the benchmarks share: the machine, the results file, the table."""

import dataclasses
import datetime
import gc
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import rich.box
import rich.console
import rich.markup
import rich.table

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# The checkout is what is measured, whatever tfaccel is installed beside it; and one
# benchmark trains the example's model.
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "examples")]

from tfaccel.compat.tensorflow_private import onednn_is_on  # noqa: E402
from tfaccel.system.device import current_device, read_cpu  # noqa: E402

RESULTS = REPOSITORY / "benchmarks" / "results"
SCHEMA = 1
# Columns of text in a log file.
_WIDTH = 140
# Instruction sets that oneDNN and XLA choose their kernels by.
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
_PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "numpy")

Row = dict[str, Any]
Summarize = Callable[[list[Row]], tuple[dict[str, Any], tuple[str, ...]]]


class ResultsError(SystemExit):
    """A results file can't be written or continued: ends the benchmark with one line of why."""


def machine() -> dict[str, Any]:
    """What the numbers are measured on."""
    cpu, device = read_cpu(), current_device()
    return {
        "cpu": cpu.name,
        "cores": cpu.cores,
        "isa": [flag for flag in _ISA if flag in cpu.flags],
        "gpu": device.name if device.kind == "GPU" else None,
        "onednn": onednn_is_on(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version for name in _PACKAGES if (version := _version(name))},
    }


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, OSError, ValueError):  # not on every system
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance() -> dict[str, Any]:
    """When, by which command and of which commit a row was measured."""
    described = subprocess.run(
        ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": described.stdout.strip() or None,
    }


def slug(text: str) -> str:
    """The text as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def machine_slug(description: Mapping[str, Any]) -> str:
    """The machine's class as part of a file's name.

    The GPU; or the CPU's maker, its best instruction set, its cores, and whether TensorFlow runs
    oneDNN's kernels: chips of one name have several, and these are what results depend on.
    """
    if description["gpu"]:
        return slug(description["gpu"])
    name = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*|\d+-core", " ", description["cpu"].lower())
    best = next((flag for flag in reversed(_ISA) if flag in description["isa"]), "")
    kernels = f"oneDNN {'on' if description['onednn'] else 'off'}"
    return slug(f"{name} {best} {description['cores']} cores {kernels}")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a results table.

    Attributes:
        title: its heading.
        cell: makes its cell from a row.
        is_number: whether it is set flush right.
    """

    title: str
    cell: Callable[[Row], str]
    is_number: bool = True


class Results:
    """Rows of measurements, kept in a JSON file with a Markdown table beside it.

    Both are written after every row, so that an interrupted run leaves what it
    had measured. A row that holds `"error"` is a measurement that failed.

    Args:
        name: what is measured, and on what data where there is a choice: the
            beginning of the file's name.
        title: the table's heading.
        columns: the table.
        folder: where the files are.
        resume: whether to go on with rows that are in the file already.

    Raises:
        ResultsError: the file to go on with can't be read, or was measured on
            another machine or with other versions.
    """

    def __init__(
        self,
        name: str,
        title: str,
        columns: Sequence[Column],
        folder: pathlib.Path = RESULTS,
        resume: bool = False,
    ):
        self._title, self._columns = title, tuple(columns)
        self._machine = machine()
        self.rows: list[Row] = []
        self.summary: dict[str, Any] = {}
        self.sentences: tuple[str, ...] = ()
        self.path = folder / f"{name}-{machine_slug(self._machine)}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if resume and self.path.exists():
                self.rows = self._read()
        except OSError as error:
            raise ResultsError(f"{self.path} can't be used: {error}") from error

    def _read(self) -> list[Row]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            schema, measured_on, rows = data["schema"], data["machine"], data["rows"]
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{self.path} holds no results: {error!r}") from error
        if schema != SCHEMA:
            raise ResultsError(f"{self.path} must have the schema {SCHEMA}. Received: {schema!r}")
        changed = [k for k, value in self._machine.items() if measured_on.get(k) != value]
        if changed:
            raise ResultsError(
                f"{self.path} was measured with another {', '.join(changed)}; run without --resume"
            )
        return rows

    def add(self, row: Row, summarize: Summarize | None = None) -> None:
        """Adds a row and writes both files.

        Args:
            row: the measurement.
            summarize: makes, of all rows, numbers for the JSON file and sentences
                to stand below the table.
        """
        self.rows.append({**row, **provenance()})
        if summarize is not None:
            self.summary, self.sentences = summarize(self.rows)
        content = {
            "schema": SCHEMA,
            "title": self._title,
            "machine": self._machine,
            "summary": self.summary,
            "rows": self.rows,
        }
        _replace(self.path, json.dumps(_json_value(content), indent=1) + "\n")
        _replace(self.path.with_suffix(".md"), self._markdown())

    def _cells(self) -> list[list[str]]:
        return [[column.cell(row) for column in self._columns] for row in self.rows]

    def _machine_line(self) -> str:
        told = self._machine
        isa = [*told["isa"], f"oneDNN {'on' if told['onednn'] else 'off'}"]
        chip = f"{told['cpu']}, {told['cores']} cores ({', '.join(isa)})"
        gpu = f"{told['gpu']} in " if told["gpu"] else ""
        packages = ", ".join(f"{name} {told[name]}" for name in _PACKAGES if name in told)
        return f"{gpu}{chip}, {told['memory_gib']} GiB, Python {told['python']}, {packages}"

    def _markdown(self) -> str:
        commands = dict.fromkeys(f"`{row['command']}` ({row['date'][:10]})" for row in self.rows)
        lines = [
            f"# {self._title}",
            "",
            f"{self._machine_line()}.",
            f"Measured by {', '.join(commands)}.",
            "",
            "| " + " | ".join(column.title for column in self._columns) + " |",
            "|" + "|".join(" ---: " if c.is_number else " --- " for c in self._columns) + "|",
        ]
        lines += ["| " + " | ".join(c.replace("|", "\\|") for c in r) + " |" for r in self._cells()]
        lines += [f"\n{sentence}" for sentence in self.sentences]
        return "\n".join(lines) + "\n"

    def __rich__(self) -> rich.console.Group:
        table = rich.table.Table(
            title=self._title, caption=self._machine_line(), box=rich.box.SIMPLE_HEAD
        )
        for column in self._columns:
            justify = "right" if column.is_number else "left"
            table.add_column(column.title, justify=justify, no_wrap=column.is_number)
        for cells in self._cells():
            # A cell such as "1.9x [1.8, 2.0]" is text and not markup.
            table.add_row(*map(rich.markup.escape, cells))
        return rich.console.Group(table, *map(rich.markup.escape, self.sentences))


def no_arguments(argv: Sequence[str]) -> None:
    """Ends a benchmark that was given more than flags."""
    if len(argv) > 1:
        sys.exit(f"There are flags only, no other arguments. Received: {' '.join(argv[1:])}")


def measure_each(
    results: Results,
    benchmarks: Iterable[Any],
    measure: Callable[[Any], Row],
    summarize: Summarize | None = None,
) -> None:
    """Adds a row for each model, unless an earlier run did.

    Args:
        results: rows with an error are measured again.
        benchmarks: have a `name`.
        measure: makes the row of one.
        summarize: as in `Results.add`.
    """
    results.rows = [row for row in results.rows if "error" not in row]
    done = {row["model"] for row in results.rows}
    for benchmark in benchmarks:
        if benchmark.name in done:
            console().print(f"{benchmark.name}: in {results.path.name} already")
            continue
        console().print(f"{benchmark.name} ...")
        row = {"model": benchmark.name}
        try:
            row |= measure(benchmark)
        except Exception as error:  # one model must not take the others' results with it
            row |= {"error": error_text(error), "traceback": traceback.format_exc()}
        results.add(row, summarize)
        console().print(results)
        keras.backend.clear_session()
        gc.collect()
    console().print(f"Written to {results.path}")


def _json_value(value: Any) -> Any:
    """The value with infinities and NaNs as text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {k: _json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes a file such that a reader, or a crash, never meets half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def console() -> rich.console.Console:
    """Where results are printed; wide enough for the tables when it is no terminal."""
    found = rich.console.Console()
    return found if found.is_terminal else rich.console.Console(width=_WIDTH)


def milliseconds(seconds: float | None) -> str:
    """Seconds as a cell in milliseconds."""
    if seconds is None:
        return "-"
    value = 1e3 * seconds
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def error_text(error: BaseException) -> str:
    """The error's class and the first line of its message."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"
