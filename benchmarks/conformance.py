"""Keeps the counts of the last `make conformance` with the other results.

make conformance ARGS="--max-tuning-seconds 5" && python benchmarks/conformance.py
"""

import argparse
import json
import pathlib
import sys

from _common import REPOSITORY, Column, Results

sys.path.insert(0, str(REPOSITORY / "conformance"))

from run import HERE, Run, read_allowed, regressions

_COLUMNS = (
    Column("tests", lambda row: row["arguments"], is_number=False),
    Column("Keras", lambda row: row["keras"]),
    Column("pass plain", lambda row: str(row["plain"])),
    Column("pass accelerated", lambda row: str(row["accelerated"])),
    Column("allowed to fail", lambda row: str(row["allowed"])),
    Column("regressions", lambda row: str(row["regressions"])),
    Column("fits", lambda row: str(row["fits"])),
    Column("accelerated to the end", lambda row: str(row["accelerated_fits"])),
)


def counts(plain: Run, accelerated: Run) -> dict[str, object]:
    """What became of the tests, and of the fits in them."""
    lost = regressions(plain, accelerated)
    allowed = lost.keys() & read_allowed(HERE / "allowed.txt").keys()
    return {
        "arguments": " ".join(accelerated.arguments),
        "keras": plain.keras,
        "plain": len(plain.with_outcome("passed")),
        "accelerated": len(accelerated.with_outcome("passed")),
        "allowed": len(allowed),
        "regressions": len(lost) - len(allowed),
        "fits": len(accelerated.fits),
        "accelerated_fits": sum(bool(fit["plan"]) for fit in accelerated.fits),
    }


def main() -> None:
    """Adds a row to the file of this class of machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=pathlib.Path, default=REPOSITORY / "build/conformance")
    records = parser.parse_args().records
    plain, accelerated = (
        Run(**json.loads((records / f"{name}.json").read_text(encoding="utf-8")))
        for name in ("plain", "accelerated")
    )
    title = "Keras's own tests, plain and with tfaccel in every fit"
    Results("conformance", title, _COLUMNS, resume=True).add(counts(plain, accelerated))


if __name__ == "__main__":
    main()
