import json
import stat
import subprocess
import sys

import pytest
from click.testing import CliRunner

from rlm.cli import main

PEER = """#!{python}
import json, sys
asked = json.load(sys.stdin)
found = {{"version": {{"peer": "other 1.0"}}, "cells": {{"p50_s": 1000.0}}}}
sys.stdout.write(json.dumps(found[asked["benchmark"]]))
"""


def rlm(*arguments):
    command = [sys.executable, "-W", "error", "-m", "rlm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def bench(*arguments):
    """The report of a benchmark, and its rows by what they measure."""
    done = rlm("bench", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["benchmark"] == arguments[0]
    assert report["machine"]["cores"] >= 1
    return report, {row["what"]: row for row in report["rows"]}


@pytest.fixture
def other_python(tmp_path):
    path = tmp_path / "python"
    path.write_text(PEER.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_fanout_makes_all_calls_at_once_and_each_prompt_reaches_the_model_once():
    report, rows = bench("fanout", "--prompts", 30, "--latency-s", 0.3, "--pool-size", 1, "--rounds", 2)
    (counts,) = report["counts"]
    assert counts["sub_requests"] == counts["distinct_sub_prompts"] == 3 * 30
    assert counts["prompts_answered_more_than_once"] == 0
    assert 15 < counts["peak_in_flight"] <= 30
    cold, warm, slowest = (rows[f"30 prompts, 0.3 s each: {what}"] for what in ("cold", "warm", "slowest call, warm"))
    assert 0.3 <= slowest["measured"] <= warm["measured"] < 30 * 0.3 / 2
    assert cold["measured"] > 0.3
    assert warm["unit"] == "s"
    assert warm["target"] is warm["met"] is warm["ratio"] is None


def test_fanout_without_latency_counts_calls_a_second():
    report, rows = bench("fanout", "--prompts", 20, "--pool-size", 1, "--rounds", 1)
    warm = rows["20 prompts, no latency: warm"]
    assert warm["unit"] == "calls/s"
    assert warm["measured"] > 1
    assert report["counts"][0]["sub_requests"] == 40


def test_cells_come_back_sooner_than_a_repl_starts():
    _, rows = bench("cells", "--cells", 50)
    p50, p99 = rows["a cell with nothing in it, p50"], rows["a cell with nothing in it, p99"]
    assert 0 < p50["measured"] <= p99["measured"]
    assert p50["target"] == 1
    assert p50["met"] is (p50["measured"] <= 1)
    assert p50["measured"] < rows["start of a later REPL, p50"]["measured"]


def test_context_counts_the_memory_of_repl_and_host_apart():
    report, rows = bench("context", "--mib", 64)
    (counts,) = report["counts"]
    assert 55 * 2**20 < counts["chars"] < 64 * 2**20
    assert counts["chars"] / 2**10 < counts["repl_now_kib"] <= counts["repl_peak_kib"]
    assert rows["64 MiB, peak memory of the host"]["measured"] < 200
    assert 1 < rows["64 MiB, peak memory of the REPL"]["measured"] < 4
    first_cell, process = rows["64 MiB, until the first cell has run"], rows["64 MiB, the whole process"]
    assert 0 < first_cell["measured"] < process["measured"]
    assert first_cell["target"] is None


def test_startup_measures_whole_processes():
    _, rows = bench("startup", "--runs", 1)
    assert rows["import rlm"]["target"] == 0.1
    assert rows["rlm --help"]["target"] == 0.3
    assert all(row["measured"] > 0.001 for row in rows.values())
    assert rows["from rlm import RLM"]["measured"] > rows["python, with nothing to do"]["measured"]


def test_a_peer_does_the_same_work_and_the_ratio_says_how_much_better_we_are(other_python):
    report, rows = bench("cells", "--cells", 10, "--peer-python", other_python)
    assert report["peer"] == "other 1.0"
    p50 = rows["a cell with nothing in it, p50"]
    assert p50["peer_measured"] == 1e6
    assert p50["ratio"] == pytest.approx(1e6 / p50["measured"], rel=0.01)
    assert rows["a cell with nothing in it, p99"]["ratio"] is None


def test_a_peer_that_fails_ends_the_benchmark_with_its_words(other_python):
    other_python.write_text(PEER.format(python=sys.executable).replace('"cells":', '"nothing":'))
    done = rlm("bench", "cells", "--cells", 2, "--peer-python", other_python)
    assert done.returncode == 3
    assert done.stderr == "rlm: other 1.0 failed at cells: KeyError: 'cells'\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cells", "--peer-python", "/no/such/python"], "cannot run /no/such/python"),
        (["cells", "--peer-python", sys.executable], "no package to compare with"),
        (["cells", "--cells", "1"], "--cells must be 2 or more"),
        (["fanout", "--prompts", "0"], "must be 1 or more"),
        (["fanout", "--latency-s", "1"], "--latency-s needs --prompts"),
        (["context", "--mib", "0"], "--mib must be 1 or more"),
        (["startup", "--runs", "0"], "--runs must be 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, words):
    done = CliRunner().invoke(main, ["bench", *arguments])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("rlm: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
