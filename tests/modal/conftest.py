"""The app on the stand-in for Modal, with the scripted model as its provider."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import modal
import pytest

from rlm.offline.server import OfflineServer, OfflineSettings, serve_offline
from tests.modal.workers_support import OnModal
from tests.modal_double import ModalDouble
from tests.modal_double.fixtures import modal_double, modal_faults, needs_isolation
from tests.repl.conftest import repl, start

__all__ = ["modal_double", "modal_faults", "needs_isolation", "repl", "start"]

ROOT = Path(__file__).parents[2]
TOKEN = "the-api-token"
ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Cloud:
    """A stand-in for Modal with the key in its Secret, and the provider that is asked."""

    double: ModalDouble
    provider: OfflineServer

    def sandboxes(self, role: str) -> list[str]:
        """The ids of the living Sandboxes of a role: "worker" or "repl"."""
        return [box.sandbox_id for box in self.double.sandboxes() if box.tags.get("rlm") == role]


@contextmanager
def cloud_of(settings: OfflineSettings, *, secret: bool = True) -> Iterator[Cloud]:
    """A cloud of one's own."""
    with serve_offline(settings) as provider, ModalDouble() as double:
        if secret:
            double.set_secret("openai-secret", {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": provider.base_url})
        yield Cloud(double, provider)
        assert double.unknown_rpcs == {}


@dataclass(frozen=True)
class Api:
    """A deployed app as its users see it."""

    cloud: Cloud
    http: httpx.Client

    def start(self, question: str, context: object, **options: Any) -> str:
        """Start a run; its id."""
        body = {"question": question, "context": context, **options}
        answer = self.http.post("/v1/runs", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def wait(self, run_id: str, until: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
        """The run when it has ended, or is as `until` says."""
        reached = until or (lambda record: record["state"] in ENDED)
        while not reached(record := self.http.get(f"/v1/runs/{run_id}").json()):
            time.sleep(0.05)  # as a user polls
        return record

    def ask(self, question: str, context: object, **options: Any) -> dict[str, Any]:
        """Start a run and wait for its end."""
        return self.wait(self.start(question, context, **options))


@contextmanager
def deployed(cloud: Cloud, *, token: str = TOKEN) -> Iterator[Api]:
    """The app, deployed to the cloud."""
    if token:
        cloud.double.set_secret("rlm-api-token", {"RLM_API_TOKEN": token})
    done = cloud.double.cli("deploy", "modal_app.py", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=cloud.double.web_url("rlm", "web"), headers=headers, timeout=30) as http:
        yield Api(cloud, http)


@pytest.fixture(scope="module")
def cloud(needs_isolation: None) -> Iterator[Cloud]:
    with cloud_of(OfflineSettings(api_key="sk-test")) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def api(cloud: Cloud) -> Iterator[Api]:
    with deployed(cloud) as api:
        yield api


@pytest.fixture
def on_modal(modal_double: ModalDouble, needs_isolation: None) -> Iterator[OnModal]:
    it = OnModal(modal_double, modal.App.lookup(f"rlm-{uuid.uuid4().hex[:8]}", create_if_missing=True))
    yield it
    it.end()


@pytest.fixture
def store(modal_double: ModalDouble) -> modal.Dict:
    return modal.Dict.from_name(f"rlm-{uuid.uuid4().hex[:8]}", create_if_missing=True)
