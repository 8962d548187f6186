"""From the options of a command to a result: reads the environment, chooses the view, handles Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from rlm.config import Limits, Provider, ReplLimits, RunConfig
from rlm.engine import RLM
from rlm.environment import environment_with
from rlm.errors import InputError
from rlm.events import Emit, Event
from rlm.progress import PlainView, TerminalView, View
from rlm.run import RunResult
from rlm.runs.log import RunLog
from rlm.runs.request import ContextSource, RunRequest, make_run
from rlm.usage import Price, PriceList, load_prices

SCRIPTED_ROOT, SCRIPTED_SUB = "scripted-root", "scripted-sub"
FREE = PriceList(dict.fromkeys((SCRIPTED_ROOT, SCRIPTED_SUB), Price(input=0.0, output=0.0, cached_input=0.0)))


def answer_question(
    question: str,
    source: ContextSource,
    *,
    offline: bool,
    env_file: Path | None,
    prices: Path | None,
    **options: Any,  # noqa: ANN401  # as click gives them
) -> RunResult:
    """Make the run that a command's options ask for, and show it on stderr while it goes on.

    Raises: InputError before anything is started, for what cannot be used; RLMError; KeyboardInterrupt.
    """
    mode, log = options.pop("mode"), options.pop("log")
    request = RunRequest(question=question, source=source, config=config_of(**options), prices=read_overrides(prices))
    with contextlib.ExitStack() as stack:
        if mode == "modal":
            if offline:
                raise InputError("--offline is for --mode local: on Modal a provider is asked")
            import modal_app  # talks to Modal, so before there is an event loop

            run = partial(modal_app.run_once, request)
        elif offline:
            run = partial(run_here, *stack.enter_context(scripted(request)))
        else:
            run = partial(run_here, request, Provider.from_environment(environment_with(env_file)))
        listeners: list[Emit] = [stack.enter_context(RunLog(log))] if log is not None else []
        listeners.append(stack.enter_context(view()))

        def tell(event: Event) -> None:
            for listener in listeners:
                listener(event)

        return uvloop.run(until_sigterm(run(tell)))


async def run_here(request: RunRequest, provider: Provider, tell: Emit) -> RunResult:
    """The run, with every process on this machine."""
    prices = load_prices(provider.base_url, request.prices) if not provider.scripted else FREE
    return await make_run(RLM(request.config, provider=provider, prices=prices, on_event=tell), request)


def config_of(**options: Any) -> RunConfig:  # noqa: ANN401  # as click gives them
    """The configuration that a command's options make."""
    repl = ReplLimits(**{name: options.pop(name) for name in ("cell_timeout_s", "max_output_chars")})
    names = ("max_calls", "max_tokens", "max_usd", "timeout_s", "max_depth")
    limits = Limits(**{name: options.pop(name) for name in names})
    return RunConfig(limits=limits, repl=repl, **options)


def read_overrides(prices: Path | None) -> str:
    """The text of the file that --prices names.

    Raises: InputError when it cannot be read.
    """
    try:
        return "" if prices is None else prices.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"cannot read {prices}: {getattr(exc, 'strerror', None) or exc}") from exc


@contextlib.contextmanager
def scripted(request: RunRequest) -> Iterator[tuple[RunRequest, Provider]]:
    """The offline model, served for the time of a run; the request to it, and the provider it is."""
    from rlm.offline.server import SCRIPTED_NOTICE, serve_offline

    sys.stderr.write(f"{SCRIPTED_NOTICE}\n")
    config = replace(request.config, model=SCRIPTED_ROOT, recursive_model=SCRIPTED_SUB)
    with serve_offline() as server:
        yield replace(request, config=config), Provider(api_key="none", base_url=server.base_url, scripted=True)


def view() -> View:
    """The live view on a terminal, plain lines elsewhere."""
    return TerminalView(sys.stderr) if sys.stderr.isatty() else PlainView(sys.stderr)


async def until_sigterm(run: Awaitable[RunResult]) -> RunResult:
    """One run; SIGTERM ends it in order, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run
