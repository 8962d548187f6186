"""What every test gets: an environment with no key of the user's, and the scripted model."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from typing import Any

import pytest

from rlm import RLM, Provider, RunConfig, RunResult
from rlm.events import Event
from rlm.offline.server import OfflineSettings, OfflineStats, serve_offline
from rlm.usage import PriceList

# A signal that this process ignores (`nohup`, a job in the background) would be ignored by what the tests start, too.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

TWO_LINES = "the first line\nthe second line holds 42\n"


@pytest.fixture(autouse=True)
def no_provider_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own key must never be asked, and never be seen."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def provider():
    """Serves a scripted model; gives the environment that names it."""
    with contextlib.ExitStack() as serving:

        def serve(*replies, **settings):
            server = serving.enter_context(serve_offline(OfflineSettings(script=replies or None, **settings)))
            return server, {"OPENAI_API_KEY": "test-key", "OPENAI_BASE_URL": server.base_url}

        yield serve


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "lease.txt"
    path.write_text("It begins in March.\nThe lease was signed by Ada Lovelace.\nIt ends in May.\n")
    return path


@dataclass(frozen=True)
class Ran:
    """What came of a run with a scripted root LM."""

    result: RunResult
    events: list[Event]
    stats: OfflineStats

    def of(self, kind: type[Event]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def reports(self) -> list[str]:
        """What the root LM was told, request by request, cut to the 200 characters the server keeps."""
        return list(self.stats.recent_prompts)


def run_script(
    *replies: str,
    context: object = TWO_LINES,
    question: str = "What is it?",
    config: RunConfig | None = None,
    prices: PriceList | None = None,
    **settings: Any,
) -> Ran:
    """Let a root LM that gives these replies, one after another, answer over the context."""
    events: list[Event] = []
    with serve_offline(OfflineSettings(script=replies or None, **settings)) as server:
        provider = Provider(api_key="test-key", base_url=server.base_url, scripted=True)
        rlm = RLM(
            config or RunConfig(model="root", recursive_model="sub"),
            provider=provider,
            prices=prices,
            on_event=events.append,
        )

        async def run() -> RunResult:
            async with rlm:
                return await rlm.run(question, context)

        return Ran(asyncio.run(run()), events, server.stats())


def cell(code: str) -> str:
    """A reply with one cell."""
    return f"I run this:\n\n```repl\n{code}\n```\n"
