"""`modal serve modal_app.py`, and the app in Images that hold what they say and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time

import httpx
import pytest
from grpclib import GRPCError

from rlm.offline.server import OfflineSettings
from tests.modal.conftest import ROOT, TOKEN, cloud_of
from tests.modal_double import ModalDouble, Settings

pytestmark = pytest.mark.usefixtures("needs_isolation")


def test_an_edit_is_picked_up_while_it_serves(tmp_path):
    shutil.copy(ROOT / "modal_app.py", tmp_path)
    for package in ("rlm", "sandbox_image"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with cloud_of(OfflineSettings()) as cloud:
        cloud.double.set_secret("rlm-api-token", {"RLM_API_TOKEN": TOKEN})
        environment = {**os.environ, **cloud.double.env}
        serving = subprocess.Popen(
            [sys.executable, "-m", "modal", "serve", "modal_app.py"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert wait_for(cloud, '"ok":true')
            app = tmp_path / "rlm" / "web" / "app.py"
            app.write_text(app.read_text().replace('{"ok": True}', '{"ok": True, "edited": True}'))
            assert wait_for(cloud, '"edited":true')
        finally:
            serving.send_signal(2)
            serving.wait(10)


def wait_for(cloud, words, limit_s=15):
    """Ask /healthz until it says the words, as somebody does who reloads a page after an edit."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        try:
            if words in httpx.get(f"{cloud.double.web_url('rlm', 'web')}/healthz", timeout=10).text:
                return True
        except (httpx.HTTPError, GRPCError):  # not there yet
            pass
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_images_hold_all_that_the_app_needs(tmp_path):
    """Each Image's pip layers in a virtual environment of its own: a package that is missing fails as on Modal."""
    from rlm.offline.server import serve_offline

    with serve_offline() as provider, ModalDouble(Settings(build=True)) as double:
        double.set_secret("openai-secret", {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": provider.base_url})
        done = double.cli("run", "modal_app.py", "--num-lines", "2000", cwd=ROOT, timeout_s=580)
        assert re.search(r"^Match: True$", done.stdout, re.MULTILINE), done.stdout + done.stderr
        cell_imports = "import numpy, pandas, regex; FINAL(pandas.DataFrame({'a': [1, 2]}).a.sum())"
    from tests.conftest import cell

    with (
        serve_offline(OfflineSettings(script=(cell(cell_imports),))) as provider,
        ModalDouble(Settings(build=True)) as double,
    ):
        double.set_secret("openai-secret", {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": provider.base_url})
        (tmp_path / "c.txt").write_text("nothing")
        done = double.cli(
            "run", "modal_app.py::ask", "--question", "q", "--context", str(tmp_path / "c.txt"), cwd=ROOT, timeout_s=580
        )
        assert done.stdout == "3\n", done.stderr
