"""`rlm doctor` as a user meets it: a line for each thing, a remedy where it fails, and no secret in any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlm.doctor import isolation
from rlm.local.isolation import Choice, choose
from tests.command import in_shell, rlm
from tests.modal_double import ModalDouble

KEY = "sk-the-key-of-the-user-0123456789"
TOKEN = "as-the-token-of-the-user-0123456789"


@pytest.fixture(autouse=True, scope="module")
def nothing_of_the_user(tmp_path_factory):
    """Neither the developer's own key and account, nor a stand-in that another test has started."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MODAL_", "OPENAI_"))]:
            patch.delenv(name)
        patch.setenv("MODAL_CONFIG_PATH", str(tmp_path_factory.mktemp("modal") / "no-such.toml"))
        yield


@dataclass(frozen=True)
class Bare:
    """A machine where nothing has been set up."""

    tmpdir: Path
    found: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def bare(nothing_of_the_user, tmp_path_factory):
    tmpdir = tmp_path_factory.mktemp("tmp")
    return Bare(tmpdir, findings("--ask", env={"TMPDIR": str(tmpdir), "MODAL_SERVER_URL": "http://127.0.0.1:1"}))


def findings(*arguments, env=None):
    """What is found, by its name; the object is well exactly when nothing failed."""
    done = rlm("doctor", "--json", *arguments, env=env)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    fails = [one for one in found["findings"] if one["state"] == "fail"]
    assert (done.returncode, found["ok"]) == (1 if fails else 0, not fails)
    assert all(one["remedy"] for one in found["findings"] if one["state"] != "ok")
    return {one["what"]: one for one in found["findings"]}


class TestTheLines:
    def test_each_thing_has_one_and_a_remedy_where_it_is_not_well(self, provider):
        server, env = provider(api_key=KEY)
        done = rlm("doctor", env={**env, "OPENAI_API_KEY": KEY})
        lines = done.stdout.splitlines()
        assert [line.split(":")[0].split()[1] for line in lines] == [
            *("Python", "packages", "provider", "temporary", "isolation", "Modal")
        ]
        assert all((" -> " in line) != line.startswith("ok ") for line in lines)
        assert done.returncode == any(line.startswith("fail") for line in lines)
        assert f"{env['OPENAI_BASE_URL']}, with a key; not asked" in done.stdout
        assert KEY not in done.stdout + done.stderr
        assert server.stats().root_requests + server.stats().sub_requests == 0

    def test_versions_are_told(self, bare):
        assert sys.version.split()[0] in bare.found["Python"]["found"]
        for package in ("rlm-modal 0.", "modal 1.", "openai 3.", "fastapi 0."):
            assert package in bare.found["packages"]["found"]
        assert "pytest" not in bare.found["packages"]["found"]

    def test_a_package_of_the_same_import_name_is_a_fail(self, tmp_path):
        theirs = tmp_path / "rlms-0.1.3.dist-info"
        theirs.mkdir()
        (theirs / "METADATA").write_text("Metadata-Version: 2.1\nName: rlms\nVersion: 0.1.3\n")
        found = findings(env={"PYTHONPATH": str(tmp_path)})["packages"]
        assert (found["state"], found["remedy"]) == ("fail", "give each an environment of its own")
        assert "rlms 0.1.3" in found["found"]


class TestTheProvider:
    def test_without_one_it_fails_and_nobody_is_asked(self, bare):
        assert bare.found["provider"]["state"] == "fail"
        assert "no OPENAI_API_KEY" in bare.found["provider"]["found"]
        assert "sub-LLM" not in bare.found

    def test_a_password_in_its_url_is_not_shown(self):
        done = rlm("doctor", env={"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "https://me:hunter22@host/v1"})
        assert "must not hold a user name or a password" in done.stdout
        assert "hunter22" not in done.stdout + done.stderr

    def test_asked_it_tells_how_long_its_sub_llm_took(self, provider, tmp_path):
        server, env = provider(api_key=KEY)
        file = tmp_path / "key.env"
        file.write_text(f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={env['OPENAI_BASE_URL']}\n")
        found = findings("--ask", "--recursive-model", "a-model", "--env-file", file)["sub-LLM"]
        assert found["state"] == "ok"
        assert "'a-model' at http://127.0.0.1:" in found["found"]
        assert " answered in " in found["found"]
        assert server.stats().answered == 1

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"api_key": "another-key-0123456789"}, "does not accept the API key"),
            ({"models": ("other",)}, "has no model 'gpt-5-nano'"),
        ],
    )
    def test_one_that_refuses_is_a_fail_that_does_not_show_the_key(self, provider, settings, words):
        _, env = provider(**settings)
        found = findings("--ask", env={**env, "OPENAI_API_KEY": KEY})["sub-LLM"]
        assert found["state"] == "fail"
        assert words in found["found"]
        assert KEY not in found["found"]

    def test_an_address_that_nobody_answers_is_a_fail(self):
        found = findings("--ask", env={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
        assert found["provider"]["found"] == "http://127.0.0.1:1/v1, with no key"
        assert found["sub-LLM"]["state"] == "fail"
        assert "cannot connect to 127.0.0.1:1" in found["sub-LLM"]["found"]

    def test_an_env_file_that_is_not_there_ends_it(self):
        done = rlm("doctor", "--env-file", "/no/such/file")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "rlm: cannot read /no/such/file: No such file or directory\n"


class TestThisMachine:
    def test_the_room_for_temporary_files_is_told_and_none_is_left_there(self, bare):
        assert bare.found["temporary files"]["found"].startswith(f"{bare.tmpdir} has ")
        assert "GiB left of" in bare.found["temporary files"]["found"]
        assert not any(bare.tmpdir.iterdir())

    def test_where_nothing_can_be_written_it_fails(self, tmp_path):
        done = in_shell("ulimit -f 2; rlm doctor", env={"TMPDIR": str(tmp_path)})
        assert (
            f"fail  temporary files: cannot write to {tmp_path}: File too large -> set TMPDIR" in done.stdout.decode()
        )
        assert done.returncode == 1

    def test_the_isolation_that_a_run_would_have_is_told(self, bare):
        tried = "from rlm.local.isolation import TOOLS, choose; print(choose(TOOLS).tool)"
        tool = subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True, check=True).stdout.strip()
        found = bare.found["isolation"]
        assert found["state"] == {"landlock": "warn", "None": "fail"}.get(tool, "ok")
        assert found["found"].startswith(f"{tool}: ") or found["state"] != "ok"

    @pytest.mark.parametrize(
        ("choice", "state", "words"),
        [
            (Choice("landlock", ("bwrap: not installed",)), "warn", "can find out whether a file exists"),
            (Choice(None, ("landlock: not in this kernel",)), "fail", "runs as you, with your files"),
        ],
    )
    def test_a_weaker_one_is_no_ok(self, choice, state, words):
        found = isolation(choice)
        assert found.state == state
        assert words in found.found
        assert choice.reasons[0] in found.found
        assert "virtual machine" in found.remedy

    def test_no_tool_at_all_is_a_fail(self):
        assert isolation(choose(())).state == "fail"


class TestModal:
    def test_without_a_token_nobody_is_asked(self, bare):
        found = bare.found["Modal"]
        assert (found["state"], found["remedy"]) == ("warn", "modal token new")
        assert "no token" in found["found"]

    def test_secrets_are_looked_for(self):
        with ModalDouble() as double:
            env = {**double.env, "MODAL_TOKEN_SECRET": TOKEN}
            found = findings(env=env)
            assert found["Modal"]["state"] == "ok"
            assert found["Modal's Secret openai-secret"]["state"] == "fail"
            assert "modal secret create openai-secret" in found["Modal's Secret openai-secret"]["remedy"]
            assert found["Modal's Secret rlm-api-token"]["state"] == "warn"
            assert "deploys closed" in found["Modal's Secret rlm-api-token"]["found"]
            double.set_secret("openai-secret", {"OPENAI_API_KEY": KEY})
            double.set_secret("rlm-api-token", {"RLM_API_TOKEN": TOKEN})
            done = rlm("doctor", env=env)
            assert "ok    Modal's Secret openai-secret: it is there" in done.stdout
            assert "ok    Modal's Secret rlm-api-token: it is there" in done.stdout
            assert KEY not in done.stdout + done.stderr
            assert TOKEN not in done.stdout + done.stderr
            assert double.unknown_rpcs == {}

    def test_a_server_that_cannot_be_reached_is_a_fail(self):
        env = {"MODAL_SERVER_URL": "http://127.0.0.1:1", "MODAL_TOKEN_ID": "ak-me", "MODAL_TOKEN_SECRET": TOKEN}
        found = findings(env=env)["Modal"]
        assert found["state"] == "fail"
        assert "cannot be reached" in found["found"]
        assert TOKEN not in found["found"]

    def test_settings_that_cannot_be_read_are_a_fail_that_does_not_show_them(self, tmp_path):
        file = tmp_path / "modal.toml"
        file.write_text(f'[me]\ntoken_secret = "{TOKEN}"\n[me]\n')
        found = findings(env={"MODAL_CONFIG_PATH": str(file)})["Modal"]
        assert found["state"] == "fail"
        assert str(file) in found["found"]
        assert TOKEN not in str(found)
