"""The page on a run that was profiled without AccelCallback."""

import json

import pytest

from tfaccel.profiling.html.page import html_page
from tfaccel.profiling.records import read_records

SUMMARY = {"kind": "summary", "plan": "baseline", "compile_seconds": 3.5, "first_step_seconds": 3.5}


@pytest.mark.parametrize(("traces", "said"), [(1, "took 3.5 s, 1 trace<"), (2, ", 2 traces<")])
def test_it_claims_no_plan_and_counts_traces_in_good_english(tmp_path, traces, said):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    run = {"kind": "run", "schema": 1, "model": {"name": "lenet", "parameters": 61706}}
    lines = [run, SUMMARY | {"traces": traces}]
    path = tmp_path / "profile.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    page = html_page(read_records(path))
    assert "There were no trials." in page
    assert "from the cache" not in page
    assert said in page
