import pytest

from rlm.bench.speed.fanout import TABLE, Case, Round, batch_row
from rlm.bench.speed.peers import SCRIPTS
from rlm.bench.speed.report import Report, Row


def test_less_is_better_unless_more_is():
    seconds = Row(what="a batch", measured=2.0, unit="s", target=3.0, peer_measured=8.0)
    assert seconds.met is True
    assert seconds.ratio == 4
    rate = Row(what="a batch", measured=200.0, unit="calls/s", target=480.0, peer_measured=400.0, more_is_better=True)
    assert rate.met is False
    assert rate.ratio == 0.5


def test_without_target_or_peer_nothing_is_claimed():
    row = Row(what="a batch", measured=2.0, unit="s")
    assert row.met is None
    assert row.ratio is None


def test_a_table_in_a_pipe_has_a_plain_line_for_each_row(capsys):
    rows = [
        Row(what="first", measured=1234.5, unit="s", target=1.0, peer_measured=2469.0, note="a long note " * 20),
        Row(what="second", measured=0.12345, unit="x", target=0.1, more_is_better=True),
        Row(what="third", measured=12.345, unit="MB"),
    ]
    Report(benchmark="fanout", rows=rows, peer="other 1.0").show()
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[-7:] == ["measured", "target", "met", "other", "1.0", "times", "better"]
    assert [line.split()[0] for line in lines] == ["first", "second", "third"]
    assert lines[0].split()[:10] == ["first", "1,234", "s", "at", "most", "1", "s", "NO", "2,469", "s"]
    assert lines[0].rstrip().endswith("a long note")
    assert lines[1].split() == ["second", "0.123", "x", "at", "least", "0.1", "x", "yes"]
    assert lines[2].split() == ["third", "12.3", "MB"]


def test_a_batch_is_held_to_one_and_a_half_times_its_own_slowest_call():
    row = batch_row(TABLE[0], "warm", Round(1.2, 0.8), None, held=True)
    assert row.target == pytest.approx(1.2)
    assert row.met is True
    assert batch_row(TABLE[0], "warm", Round(1.3, 0.8), None, held=True).met is False
    assert batch_row(TABLE[0], "warm", Round(1.3, 0.8), None, held=False).met is None


def test_a_batch_without_latency_is_held_to_twice_the_peer():
    row = batch_row(TABLE[2], "warm", Round(1.0, 0.8), 3.0, held=True)
    assert row.measured == 1_000
    assert row.peer_measured == pytest.approx(1_000 / 3)
    assert row.target == pytest.approx(2_000 / 3)
    assert row.met is True
    assert batch_row(TABLE[2], "warm", Round(1.0, 0.8), None, held=True).met is None


def test_the_table_is_that_of_the_readme():
    assert [(case.prompts, case.latency_s) for case in TABLE] == [(78, 0.76), (1_000, 0.5), (1_000, 0)]
    assert str(Case(prompts=1_000, latency_s=0.5)) == "1,000 prompts, 0.5 s each"


def test_the_scripts_for_peers_are_with_the_package_and_need_nothing_of_it():
    scripts = {path.stem: path.read_text("utf-8") for path in SCRIPTS.glob("*.py")}
    assert set(scripts) == {"rlms", "recursive_llm"}
    assert not any("import rlm" in text or "from rlm" in text for text in scripts.values())
