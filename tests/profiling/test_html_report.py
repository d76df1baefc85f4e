"""The page: the record's own numbers, nothing from elsewhere, and nothing claimed unmeasured."""

import html.parser
import json
import re

import pytest
from recorded import (
    RATIOS,
    RECORDS,
    RUN,
    SUMMARY,
    TUNED,
    comparison,
    interval,
    ops,
    saved,
)

from tfaccel.autotune.report import Report
from tfaccel.core.plan import Plan
from tfaccel.measure.timing import median_interval
from tfaccel.profiling.html.plots import Line, line_chart
from tfaccel.profiling.html.svg import Chart
from tfaccel.profiling.key_figures import key_figures
from tfaccel.profiling.outcome import facts
from tfaccel.profiling.records import Records, read_records
from tfaccel.profiling.words import verdict

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and notes what is on the page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids = [], [], [], []
        self.cells, self.words, self.cards = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] in ("style", "script"):
            return
        self.words.append(data)
        if self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def changed(kind, **changes):
    """The records, with one kind's values changed."""
    return [item | changes if item["kind"] == kind else item for item in RECORDS]


def without(*kinds):
    return [item for item in RECORDS if item["kind"] not in kinds]


def records(tmp_path, items=RECORDS):
    return read_records(saved(tmp_path, items))


def test_the_page_is_whole_and_loads_nothing(page):
    text = page()
    found = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert "http" not in text.replace("http-equiv", "")
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not {"src", "srcset"} & {name for name, _ in found.attributes}
    links = [value for name, value in found.attributes if name == "href"]
    assert links
    assert {link[1:] for link in links} <= set(found.ids)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert len(found.ids) == len(set(found.ids))


def test_the_page_has_the_numbers_of_the_record(page):
    found = Page(page())
    for words in (
        "lenet",
        "A step is 1.36x [1.31-1.66] as fast with xla as untouched.",
        "16.15 ms",
        "95 % of steps within 18.75 ms",
        "3,846",
        "in batches of 64",
        "21.4 %",
        "of 120 GFLOP/s (measured float32 matmul); 1.2 GFLOP a step",
        "1.35 %",
        "1.36x",
        "95 % interval 1.31 to 1.66, 8 comparisons, xla",
        "775 MiB",
        "2.2 s",
        "tracing and compiling took 2.12 s, 2 traces",
        "13.2 s",
        "paid back after 2,210 steps; the run had 300",
        "1.15 %",
        "in 12.2 s",
        "NVIDIA H100, 80.0 GiB, compute capability 9.0",
        "avx2, fma",
        "2.21.0",
        "(None, 32, 32, 3) float32, (None,) int64",
    ):
        assert words in found.text, words
    for row in (
        ["300", "16.25", "18.50", "1.20 %"],
        ["300", "3,848.00", "60.12"],
        ["matmul", "10.00", "8.00"],
        ["elementwise", "4.50", "1.00"],
        ["optimizer", "2.00", "0.00"],
        ["other", "0.00", "1.00"],
        ["all", "16.50", "10.00"],
        ["MatMul<x>", "10.00", "3", "matmul"],
        *(list(row) for row in TUNED.rows()),
    ):
        assert any(found.cells[i : i + len(row)] == row for i in range(len(found.cells))), row


def test_the_live_speedup_is_that_of_the_pairs_so_far(page):
    found = Page(page())
    for count in range(1, len(RATIOS) + 1):
        ends = [f"{value:.2f}x" for value in median_interval(RATIOS[:count])]
        known = ends if count >= 6 else [ends[0], "", ""]
        row = [str(40 + 10 * count), str(count), *known]
        assert any(found.cells[i : i + 5] == row for i in range(len(found.cells))), row


def test_several_plans_are_told_apart(page):
    other = [comparison(200 + index, 2.0, "fused_norm") for index in range(6)]
    found = Page(page([*RECORDS[:-1], *other, interval(400, plan="fused_norm"), SUMMARY]))
    for row in (
        ["120", "xla", "8", "1.37x", "1.30x", "1.50x"],
        ["205", "fused_norm", "6", "2.00x", "2.00x", "2.00x"],
        ["300", "xla", "16.25"],
        ["400", "fused_norm", "16.25"],
    ):
        assert any(found.cells[i : i + len(row)] == row for i in range(len(found.cells))), row


def test_the_same_records_give_the_same_page(page):
    assert page() == page()


@pytest.mark.parametrize("kind", sorted({item["kind"] for item in RECORDS} - {"run"}))
def test_a_page_without_some_kind_of_record(page, kind):
    assert "lenet" in Page(page(without(kind))).text


def test_a_page_of_a_run_that_has_just_begun(page):
    found = Page(page([RUN]))
    for words in (
        "Training ran with the untouched step; nothing faster was tried.",
        "The run wrote no summary",
        "Nothing was compared.",
        "ProfilerCallback(profile_batch=(10, 14))",
        "AccelCallback()",
    ):
        assert words in found.text
    assert "svg" not in found.tags


def test_a_run_that_was_stopped_has_its_last_interval(page):
    found = Page(page(without("summary")))
    assert "16.25 ms" in found.text
    assert "1.36x [1.31-1.66] as fast with xla" in found.text
    assert "The run wrote no summary" in found.text


EVIL = "\x01\ud800</title></style><script>alert(1)</script><!-- $x$ & \"'"


def test_what_the_file_says_cannot_become_markup(page):
    evil = [
        RUN | {"model": {"name": EVIL}, "machine": {"cpu": EVIL, "gpus": [EVIL]}, "started": EVIL},
        {"kind": "trace", "step": 0, "seconds": 1.0, "plan": EVIL, "shapes": [EVIL]}
        | {"cause": "shape", "argument": EVIL, "was": [EVIL], "now": {EVIL: EVIL}},
        {"kind": "tuning", "step": 3, "seconds": 1.0, "report": {"schema": EVIL}},
        *(comparison(step, 2.0, EVIL) for step in range(9)),
        interval(10, plan=EVIL),
        ops(EVIL, 5, matmul=1.0) | {"ops": [{"name": EVIL, "op_kind": EVIL, "seconds": 1.0}]},
        SUMMARY
        | {"plan": EVIL, "peak_source": EVIL, "host_memory": EVIL}
        | {"retrace_causes": [EVIL, {"cause": "dtype", "argument": EVIL, "times": EVIL}]},
    ]
    text = page(evil)
    found = Page(text)
    assert not {"script", "b"} & set(found.tags)
    assert found.tags.count("style") == 1
    assert text.count("&lt;script&gt;alert(1)") >= 8


@pytest.mark.parametrize(
    "value", ["soon", None, [], {}, True, -1, 0, 1e400, 10**400], ids=lambda value: repr(value)[:9]
)
def test_values_of_the_wrong_kind_are_no_error(page, value):
    odd = [
        {key: item[key] if key in ("kind", "schema") else value for key in item} for item in RECORDS
    ]
    assert "h1" in Page(page(odd)).tags


def test_hundreds_of_intervals_are_thinned(page):
    many = [RUN, *(interval(step) for step in range(1, 1501)), SUMMARY]
    text = page(many)
    assert "40 of 1500, evenly spaced" in text
    assert len(text) < 300_000


def test_input_bound_claims_no_speedup(page):
    bound = {"input_bound": True, "input_wait_share": 0.63}
    for changes in (bound, bound | {"speedup": None}):
        found = Page(page(changed("summary", **changes)))
        assert "63 % of the time is spent waiting for input, so no speedup is claimed" in found.text
        assert "prefetch" in found.text
        assert "as fast" not in found.text
        assert "paid back after" not in found.text
        assert not re.search(r"Speedup[^.]* 1\.36x", found.text)
        assert "This run waited for its input, so it gains nothing" in found.text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"speedup": 1.36}, "A step is 1.36x [1.31-1.66] as fast with xla as untouched."),
        (
            {"speedup": 1.01, "speedup_low": 0.98, "speedup_high": 1.03},
            "A step is 1.01x [0.98-1.03] as fast with xla as untouched: no difference",
        ),
        (
            {"speedup": 0.91, "speedup_low": 0.88, "speedup_high": 0.95},
            "A step is slower with xla: 0.91x [0.88-0.95] as fast as the untouched one.",
        ),
        ({"comparisons": 5}, "A step was 1.36x as fast with xla as untouched, in too few"),
        ({"speedup": None}, "Training ran with xla; it was not compared"),
        ({"plan": "baseline"}, "Training ended with the untouched step: xla, chosen first"),
    ],
)
def test_the_verdict(tmp_path, changes, expected):
    assert verdict(records(tmp_path, changed("summary", **changes))).startswith(expected)


def test_the_verdict_on_a_baseline_that_won(tmp_path):
    report = Report(TUNED.trials[:2], Plan(), note="")
    items = [
        item | {"report": json.loads(report.to_json())} if item["kind"] == "tuning" else item
        for item in changed("summary", plan="baseline", speedup=None)
    ]
    assert verdict(records(tmp_path, items)).startswith("The untouched step was the fastest")


def test_the_verdict_where_nothing_was_tried(tmp_path):
    report = Report((), Plan(), note="run_eagerly=True leaves training as it is.")
    items = [RUN, {"kind": "tuning", "step": 0, "report": json.loads(report.to_json())}]
    said = verdict(records(tmp_path, items))
    assert said == (
        "Training ran with the untouched step; nothing faster was tried. "
        "run_eagerly=True leaves training as it is."
    )


def test_facts_of_a_stopped_run():
    found = facts(Records(RUN, [interval(100), interval(200, **{"time/step_ms": 15.5})]))
    assert (found["steps"], found["seconds"], found["step_ms"]) == (200, 7.0, 15.5)


def test_growth_and_retraces_are_told_with_what_to_do(page):
    found = Page(page()).text
    assert "grows by 3.00 MiB an epoch" in found
    assert "x's shape (8, 4) -> (4, 4)" in found and "drop_remainder" in found
    assert "the first batch" in found  # because of which the step was traced


def test_device_memory_comes_before_the_process_s(tmp_path):
    figures = key_figures(records(tmp_path, changed("summary", peak_bytes=2**31)))
    [memory] = [figure for figure in figures if figure.label == "Peak memory"]
    assert (memory.value, memory.note) == ("2.00 GiB", "on the device; process 775 MiB")


def test_the_label_beside_long_numbers_is_within_the_plot():
    line = Line("pairs", range(9), [2.0] * 9, 0, band=([1.25] * 9, [2.35] * 9))
    drawn = line_chart(Chart("a", "Speedup", "over steps", "times as fast"), [line], level=1)
    [left] = re.findall(r'x="([\d.]+)"[^>]*rotate\(-90', drawn)
    assert float(left) > 8  # the letters' height


def test_plots_take_their_colours_from_the_page(page):
    text = page()
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    assert len(plots) == 5
    for plot in plots:
        assert "currentColor" in plot
        assert re.search(r"var\(--paint-[0-7]\)", plot)
        assert set(re.findall(r"#[0-9a-f]{6}\b", plot)) <= {"#000000", "#ffffff"}
        assert re.search(r"<title [^>]*>[^<]+</title><desc [^>]*>[^<]+</desc>", plot)
        assert "DejaVu" not in plot
