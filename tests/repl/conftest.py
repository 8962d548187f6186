"""A REPL session to talk to step by step, so that a test reads as a transcript."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm.config import ReplLimits
from rlm.context import context_from_value
from rlm.events import CellOutput
from rlm.local.repl import LocalReplLauncher
from rlm.repl.session import ReplSession


async def shout(call):
    """Sub-LLMs that give back the prompt in capitals; child runs that tell their context; a budget."""
    match call.kind:
        case "llm":
            return [{"text": prompt.upper()} for prompt in call.items]
        case "rlm":
            return [{"text": f"{item.prompt} over {item.context!r}"} for item in call.items]
        case "budget":
            return [{"calls": {"spent": 2, "left": 3}, "usd": {"spent": 0.01, "left": None}}]


class Repl:
    def __init__(self, runner: asyncio.Runner, session: ReplSession) -> None:
        self.runner = runner
        self.session = session
        self.description = session.context_description

    def run(self, code: str) -> CellOutput:
        return self.runner.run(self.session.run(textwrap.dedent(code)))

    def final(self, text: str) -> CellOutput:
        return self.runner.run(self.session.final(text))

    def close(self) -> str:
        return self.runner.run(self.session.close())


def starting(folder: Path) -> Iterator[object]:
    opened: list[Repl] = []
    with asyncio.Runner() as runner:

        def start_one(context: object = "", answer=shout, launcher=None, max_prompt_chars=None, **limits) -> Repl:
            session = ReplSession(
                launcher or LocalReplLauncher(),
                context_from_value(context, folder),
                ReplLimits(**limits),
                answer,
                max_prompt_chars=max_prompt_chars,
            )
            runner.run(session.__aenter__())
            opened.append(Repl(runner, session))
            return opened[-1]

        yield start_one
        for repl in opened:
            repl.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """Starts REPLs: `start(context, answer=..., cell_timeout_s=...)`. All are closed at the end."""
    yield from starting(tmp_path)


@pytest.fixture(scope="module")
def start_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The same for REPLs that the cases of a module share."""
    yield from starting(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def repl(start) -> Repl:
    return start()


@pytest.fixture(scope="module")
def shared(start_shared) -> Repl:
    """A REPL whose variables stay from case to case."""
    return start_shared()
