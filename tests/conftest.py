"""What every test gets: an environment with no key of the user's, and the scripted model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from rlm import RLM, Provider, RunConfig, RunResult
from rlm.events import Event
from rlm.offline.server import OfflineSettings, OfflineStats, serve_offline
from rlm.usage import PriceList

TWO_LINES = "the first line\nthe second line holds 42\n"


@pytest.fixture(autouse=True)
def no_provider_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own key must never be asked, and never be seen."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


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
