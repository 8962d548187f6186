"""The command line as a user meets it: whole processes, pipes and a terminal, Ctrl-C, what is wrong with the input."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlm.offline.server import Fault
from tests.command import RLM, rlm
from tests.conftest import cell


class TestNiah:
    def test_offline_it_finds_the_needle_and_says_that_the_model_is_scripted(self):
        done = rlm("niah", "--num-lines", 2000, "--seed", 5)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        expected = lines[1].removeprefix("Expected: ")
        assert lines[0] == f"Result: {expected}"
        assert lines[2] == "Match: True"
        assert re.fullmatch(r"Summary: [\d.]+ s, \d+ iterations, \d+ sub-calls, .*\$0\.0000, seed 5", lines[3])
        assert "scripted model" in done.stderr

    def test_json_is_one_object_on_stdout(self):
        done = rlm("niah", "--num-lines", 500, "--seed", 5, "--json")
        report = json.loads(done.stdout)
        assert report["match"] is True
        assert report["answer"] == report["expected"]
        assert report["scripted"] is True
        assert report["stopped_by"] == "answer"
        assert report["usage"]["scripted-sub"]["calls"] == report["sub_calls"] > 0

    def test_the_same_seed_gives_the_same_needle(self):
        first, second = (json.loads(rlm("niah", "--num-lines", 50, "--seed", 9, "--json").stdout) for _ in range(2))
        assert first["expected"] == second["expected"]

    def test_without_a_seed_the_one_taken_is_told(self):
        assert re.search(r"seed \d+$", rlm("niah", "--num-lines", 50).stdout.strip())

    def test_a_provider_of_the_environment_is_asked(self, provider):
        server, env = provider("FINAL(wrong)")
        done = rlm("niah", "--num-lines", 50, env=env)
        assert (done.returncode, "Match: False" in done.stdout) == (0, True)
        assert server.stats().root_requests == 1
        assert "scripted" not in done.stderr

    def test_it_is_the_same_as_the_console_script(self):
        script = os.path.join(os.path.dirname(sys.executable), "rlm")  # noqa: PTH118, PTH120
        done = subprocess.run([script, "niah", "--num-lines", "50"], capture_output=True, text=True, check=False)
        assert "Match: True" in done.stdout


class TestAsk:
    def test_offline_it_prints_the_answer_alone_on_stdout(self, text):
        done = rlm("ask", "Who signed the lease?", "--context", text, "--offline")
        assert (done.returncode, done.stdout) == (0, "The lease was signed by Ada Lovelace.\n")

    def test_without_a_key_it_is_a_clear_error(self, text):
        done = rlm("ask", "Who?", "--context", text)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "rlm: there is no OPENAI_API_KEY: set it, name a file with --env-file, or try --offline\n"
        )

    def test_a_key_may_come_from_a_file(self, text, provider, tmp_path):
        server, env = provider("FINAL(from the file)", api_key="file-key")
        file = tmp_path / ".env"
        file.write_text(f'OPENAI_API_KEY="file-key"\nOPENAI_BASE_URL={env["OPENAI_BASE_URL"]}\n')
        assert rlm("ask", "Q?", "--context", text, "--env-file", file).stdout == "from the file\n"
        assert server.stats().answered == 1

    def test_the_file_with_the_key_is_no_part_of_a_context(self, provider, tmp_path):
        _, env = provider(cell("FINAL(sorted(context))"))
        folder = tmp_path / "work"
        folder.mkdir()
        (folder / "notes.txt").write_text("notes")
        (folder / "key.env").write_text(
            f'OPENAI_API_KEY="file-key-0123456789"\nOPENAI_BASE_URL={env["OPENAI_BASE_URL"]}\n'
        )
        (folder / "link.env").hardlink_to(folder / "key.env")
        done = rlm("ask", "Q?", "--context", folder, "--env-file", folder / "key.env")
        assert done.stdout == '["notes.txt"]\n'
        assert "key.env holds the key" in done.stderr
        done = rlm("ask", "Q?", "--context", folder / "link.env", "--env-file", folder / "key.env")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith("key.env holds the key, so it cannot be the context\n")

    def test_standard_input_is_a_context(self, provider):
        _, env = provider(cell("FINAL(ascii(context))"))
        done = rlm("ask", "Q?", "--context", "-", env=env, input="piped\n")
        assert done.stdout == "'piped\\n'\n"

    def test_several_files_are_a_dict_of_name_to_text(self, provider, text, tmp_path):
        (tmp_path / "b.json").write_text("[1]")
        _, env = provider(cell("FINAL(sorted((name[-5:], type(v).__name__) for name, v in context.items()))"))
        done = rlm("ask", "Q?", "--context", text, "--context", tmp_path / "b.json", env=env)
        assert done.stdout == '[[".json", "str"], ["e.txt", "str"]]\n'

    def test_an_answer_cut_short_by_a_limit_exits_0_and_says_so(self, provider, text):
        _, env = provider(cell("print(1)"), "FINAL(early)")
        done = rlm("ask", "Q?", "--context", text, "--max-iterations", 1, "--json", env=env)
        assert (done.returncode, json.loads(done.stdout)["stopped_by"]) == (0, "iterations")

    def test_no_answer_exits_3(self, provider, text):
        _, env = provider(cell("print(1)"), "")
        done = rlm("ask", "Q?", "--context", text, "--max-iterations", 1, "--json", env=env)
        assert (done.returncode, json.loads(done.stdout)["answer"]) == (3, None)

    def test_no_answer_tells_what_was_found_and_what_to_try(self, provider, text):
        _, env = provider(cell("print('page 7 looks right')"), "")
        done = rlm("ask", "Q?", "--context", text, "--max-iterations", 1, "--quiet", env=env)
        assert (done.returncode, done.stdout) == (3, "")
        lines = done.stderr.splitlines()
        assert lines[lines.index("found so far:") + 1] == "page 7 looks right"
        assert lines[-1] == (
            "rlm: there is no answer: cut short by iterations; try a higher --max-iterations, or ask for less"
        )

    def test_a_run_that_fails_tells_what_was_spent_and_found(self, provider, text):
        # The fault is for the second request: only that one holds the cell's output.
        _, env = provider(cell("print('o' + 'nce')\nllm_query('a')"), faults=(Fault(match="once", status=400),))
        done = rlm("ask", "Q?", "--context", text, "--json", env=env)
        assert done.returncode == 3
        report = json.loads(done.stdout)
        assert (report["answer"], report["stopped_by"], report["iterations"], report["sub_calls"]) == (
            *(None, "error"),
            *(1, 1),
        )
        assert report["usage"]["gpt-5-nano"]["calls"] == 1
        lines = done.stderr.splitlines()
        assert lines[-1] == f"rlm: {report['error']}"
        assert lines[lines.index("found so far:") + 1] == "once"
        assert re.match(r"[\d.]+ s, 1 iterations, 1 sub-calls, .*, then it failed$", lines[-2])

    @pytest.mark.parametrize("options", [(), ("--offline", "--pool-size", 0), ("--offline", "--log", "/no/such/log")])
    def test_bad_input_is_an_object_too(self, text, options):
        done = rlm("ask", "Q?", "--context", text, "--json", *options)
        assert done.returncode == 2
        report = json.loads(done.stdout)
        assert (report["answer"], f"rlm: {report['error']}") == (None, done.stderr.splitlines()[-1])

    def test_the_log_holds_every_event_of_the_run(self, provider, text, tmp_path):
        _, env = provider(cell("print(llm_query('a'))"), "FINAL(1)")
        rlm("ask", "Q?", "--context", text, "--log", tmp_path / "run.jsonl", env=env)
        rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["event"] != "notice"]  # of how well this machine isolates
        assert [row["event"] for row in rows] == [
            *("run_started", "message_sent", "message_sent", "root_replied", "spent"),
            *("cell_started", "sub_calls_started", "sub_call_finished", "spent", "cell_finished"),
            *("message_sent", "root_replied", "spent", "cell_started", "cell_finished", "run_finished"),
        ]
        assert rows[-1]["answer"] == "1"
        assert len({row["run_id"] for row in rows}) == 1

    def test_the_log_keeps_what_was_done_when_the_provider_gives_up(self, provider, text, tmp_path):
        # The fault is for the second request: only that one holds the cell's output.
        _, env = provider(cell("print('o' + 'nce')"), "FINAL(1)", faults=(Fault(match="once", status=400),))
        done = rlm("ask", "Q?", "--context", text, "--log", tmp_path / "run.jsonl", env=env)
        assert done.returncode == 3
        rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
        assert rows[-1]["event"] == "run_failed"
        assert any(row["event"] == "cell_finished" for row in rows)

    def test_piped_progress_is_plain_lines(self, text):
        done = rlm("ask", "Who signed the lease?", "--context", text, "--offline")
        assert "\x1b" not in done.stderr
        assert re.search(r"\[ +[\d.]+ s\] iteration 2/10", done.stderr)

    def test_it_says_which_models_are_asked_and_where_before_it_does(self, text, provider):
        server, env = provider("FINAL(1)")
        done = rlm("ask", "Q?", "--context", text, "--model", "large", "--recursive-model", "small", env=env)
        host = server.base_url.removeprefix("http://").removesuffix("/v1")
        assert done.stderr.splitlines()[0].endswith(f"root LM large, sub-LLM small, at {host}")

    def test_quiet_leaves_errors_notices_and_the_answer(self, text, provider):
        _, env = provider(cell("print('a word')"), "FINAL(1)")
        done = rlm("ask", "Q?", "--context", text, "--quiet", env=env)
        assert (done.returncode, done.stdout) == (0, "1\n")
        assert all(line.startswith("note: ") for line in done.stderr.splitlines())

    def test_verbose_shows_the_code_of_cells(self, text, provider):
        _, env = provider(cell("word = 'a word'\nprint(word)"), "FINAL(1)")
        for options, is_shown in (((), False), (("--verbose",), True)):
            done = rlm("ask", "Q?", "--context", text, *options, env=env)
            assert ("    print(word)" in done.stderr.splitlines()) is is_shown


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "status", "words"),
        [
            (("ask", "Q?", "--context", "no-such-file", "--offline"), 2, "cannot read no-such-file: No such file"),
            (("ask", " ", "--context", __file__, "--offline"), 2, "the question is empty"),
            (("ask", "Q?", "--context", __file__, "--offline", "--max-iterations", -1), 2, "max_iterations must be 1"),
            (("ask", "Q?", "--context", __file__, "--offline", "--pool-size", 0), 2, "pool_size must be 1 or more"),
            (("ask", "Q?", "--context", __file__, "--offline", "--max-usd", -2), 2, "max_usd must not be negative: -2"),
            (
                ("ask", "Q?", "--context", __file__, "--offline", "--cell-timeout-s", 0),
                2,
                "cell_timeout_s must be more",
            ),
            (("ask", "Q?", "--context", __file__, "--offline", "--log", "/no/such/log"), 2, "cannot write the log"),
            (("ask", "Q?", "--context", __file__, "--env-file", "/no/such/env"), 2, "cannot read /no/such/env"),
            (("ask", "Q?", "--context", __file__, "--quiet", "--verbose"), 2, "--verbose and --quiet are two views"),
            (("ask", "Q?", "--offline"), 2, "Missing option '--context'"),
            (("niah", "--num-lines", 0), 2, "'--num-lines': 0 is not in the range x>=1"),
            (("niah", "--num-lines", "many"), 2, "'many' is not a valid integer"),
            (("offline-llm", "--error-rate", 7), 2, "error rate go from 0 to 1"),
            (("nonsense",), 2, "No such command 'nonsense'"),
        ],
    )
    def test_it_is_one_clear_line_and_a_status(self, arguments, status, words):
        done = rlm(*arguments)
        assert done.returncode == status
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr

    def test_json_that_is_none_is_named(self, tmp_path):
        (tmp_path / "data.json").write_text("{not json")
        done = rlm("ask", "Q?", "--context", tmp_path / "data.json", "--offline")
        assert done.returncode == 2
        assert "data.json is not valid JSON" in done.stderr.splitlines()[-1]

    def test_an_empty_folder_is_named(self, tmp_path):
        done = rlm("ask", "Q?", "--context", tmp_path, "--offline")
        assert done.returncode == 2
        assert f"there is no text in {tmp_path}" in done.stderr.splitlines()[-1]

    def test_the_wrong_key(self, text, provider):
        _, env = provider("FINAL(1)", api_key="another")
        done = rlm("ask", "Q?", "--context", text, env=env)
        assert done.returncode == 3
        assert "does not accept the API key" in done.stderr.splitlines()[-1]

    def test_a_model_the_provider_does_not_have(self, text, provider):
        _, env = provider("FINAL(1)", models=("other",))
        done = rlm("ask", "Q?", "--context", text, "--model", "missing", env=env)
        assert done.returncode == 3
        assert (
            "has no model 'missing': The model `missing` does not exist. (see --model" in done.stderr.splitlines()[-1]
        )

    def test_a_base_url_that_nobody_answers(self, text):
        done = rlm("ask", "Q?", "--context", text, env={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
        assert done.returncode == 3
        assert "gave no answer: failed 5 times, the last: cannot connect to 127.0.0.1:1" in done.stderr.splitlines()[-1]

    def test_a_base_url_that_is_none(self, text):
        done = rlm("ask", "Q?", "--context", text, env={"OPENAI_BASE_URL": "nonsense"})
        assert done.returncode == 2
        assert "OPENAI_BASE_URL is not an http(s) URL" in done.stderr


class TestTheTerminal:
    def test_it_shows_cells_output_and_figures_and_leaves_the_answer(self, text):
        shown, status = on_a_terminal("ask", "Who signed the lease?", "--context", text, "--offline")
        assert status == 0
        for words in ("[1] ", "iteration ", "/10 · ", "sub-calls", "tokens", "\x1b["):
            assert words in shown
        assert shown.rstrip().endswith("The lease was signed by Ada Lovelace.")

    def test_what_a_cell_prints_cannot_drive_it(self, text, provider):
        _, env = provider(cell("print('\\x1b]0;owned\\x07')\nFINAL('\\x1b[2Jgone')"))
        shown, _ = on_a_terminal("ask", "Q?", "--context", text, env=env)
        assert "\x1b]0;" not in shown
        assert "\x1b[2J" not in shown
        assert "\\x1b[2Jgone" in shown


def on_a_terminal(*arguments, env=None):
    """What the program writes when its three streams are a terminal, and its exit status."""
    child, master = pty.fork()
    if child == 0:
        os.execve(
            RLM[0], [*RLM, *map(str, arguments)], {**os.environ, **(env or {}), "TERM": "xterm", "COLUMNS": "120"}
        )
    shown = bytearray()
    while select.select([master], [], [], 15)[0]:
        try:
            shown += os.read(master, 65536)
        except OSError:  # the program has ended
            break
    os.close(master)
    return shown.decode(errors="replace"), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class TestOfflineLlm:
    def test_it_serves_until_it_is_interrupted(self):
        running = subprocess.Popen(
            [*RLM, "offline-llm", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        base_url = running.stdout.readline().strip().removeprefix("OPENAI_BASE_URL=")
        done = rlm("niah", "--num-lines", 100, env={"OPENAI_BASE_URL": base_url})
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=10)
        assert "Match: True" in done.stdout
        assert "scripted model" in stderr
        assert "Traceback" not in stderr


class TestHelp:
    @pytest.mark.parametrize("command", [(), ("ask",), ("niah",), ("doctor",), ("bench",), ("offline-llm",)])
    def test_it_is_there_for_every_command(self, command):
        done = rlm(*command, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: ")

    def test_every_option_is_in_the_readme_and_every_one_of_the_readme_is_there(self):
        readme = (Path(__file__).parents[1] / "README.md").read_text()
        table = [line.split("|")[1] for line in readme.replace("\\|", "/").splitlines() if line.startswith("| `--")]
        told = set(re.findall(r"--[a-z-]+", "".join(table)))
        shown = set(re.findall(r"--[a-z-]+", rlm("niah", "--help").stdout + rlm("ask", "--help").stdout))
        assert told == shown - {"--help"}
