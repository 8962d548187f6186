"""From the options of a command to a result: reads the environment, chooses the view, handles Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from rlm.config import Limits, Provider, RunConfig
from rlm.context import Context
from rlm.engine import RLM, RunResult
from rlm.errors import InputError
from rlm.events import Emit, Event
from rlm.progress import PlainView, TerminalView, View
from rlm.repl.session import ReplLimits
from rlm.runs.log import RunLog
from rlm.usage import Price, PriceList, load_prices

KEY_VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
SCRIPTED_ROOT, SCRIPTED_SUB = "scripted-root", "scripted-sub"


def environment_with(env_file: Path | None) -> Mapping[str, str]:
    """The environment, with what the file sets on top.

    Raises: InputError when the file cannot be read.
    """
    if env_file is None:
        return os.environ
    from dotenv import dotenv_values

    try:
        with env_file.open(encoding="utf-8") as file:
            found = {name: value for name, value in dotenv_values(stream=file).items() if value is not None}
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"cannot read {env_file}: {getattr(exc, 'strerror', None) or exc}") from exc
    return {**os.environ, **found}


def has_provider(env_file: Path | None) -> bool:
    """Whether the environment or the file names a key or a base URL."""
    environment = environment_with(env_file)
    return any(environment.get(name, "").strip() for name in KEY_VARIABLES)


def answer_question(
    question: str,
    context: Context,
    *,
    offline: bool,
    env_file: Path | None,
    prices: Path | None,
    **options: Any,  # noqa: ANN401  # as click gives them
) -> tuple[RunResult, bool]:
    """Run an RLM over the context and show it on stderr; the result, and whether the model was the scripted one.

    Raises: InputError before anything is started, for what cannot be used; RLMError; KeyboardInterrupt.
    """
    log = options.pop("log")
    options.pop("mode")
    config = config_of(**options)
    with contextlib.ExitStack() as stack:
        if offline:
            config, provider, price_list = stack.enter_context(scripted_provider(config))
        else:
            provider = Provider.from_environment(environment_with(env_file))
            price_list = load_prices(provider.base_url, prices)
        listeners: list[Emit] = [stack.enter_context(RunLog(log))] if log is not None else []
        listeners.append(stack.enter_context(view()))

        def tell(event: Event) -> None:
            for listener in listeners:
                listener(event)

        rlm = RLM(config, provider=provider, prices=price_list, on_event=tell)
        return uvloop.run(run_to_the_end(rlm, question, context)), offline


def config_of(**options: Any) -> RunConfig:  # noqa: ANN401  # as click gives them
    """The configuration that a command's options make."""
    repl = ReplLimits(**{name: options.pop(name) for name in ("cell_timeout_s", "max_output_chars")})
    names = ("max_calls", "max_tokens", "max_usd", "timeout_s", "max_depth")
    limits = Limits(**{name: options.pop(name) for name in names})
    return RunConfig(limits=limits, repl=repl, **options)


@contextlib.contextmanager
def scripted_provider(config: RunConfig) -> Iterator[tuple[RunConfig, Provider, PriceList]]:
    """The offline model, served for the time of a run, and the configuration that names it."""
    from rlm.offline.server import SCRIPTED_NOTICE, serve_offline

    sys.stderr.write(f"{SCRIPTED_NOTICE}\n")
    with serve_offline() as server:
        free = Price(input=0.0, output=0.0, cached_input=0.0)
        yield (
            replace(config, model=SCRIPTED_ROOT, recursive_model=SCRIPTED_SUB),
            Provider(api_key="none", base_url=server.base_url, scripted=True),
            PriceList({SCRIPTED_ROOT: free, SCRIPTED_SUB: free}),
        )


def view() -> View:
    """The live view on a terminal, plain lines elsewhere."""
    return TerminalView(sys.stderr) if sys.stderr.isatty() else PlainView(sys.stderr)


async def run_to_the_end(rlm: RLM, question: str, context: Context) -> RunResult:
    """One run; SIGTERM ends it in order, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with rlm:
        return await rlm.run(question, context)


def report_json(result: RunResult, *, scripted: bool) -> dict[str, Any]:
    """What --json prints."""
    return {
        "answer": result.answer,
        "stopped_by": result.stopped_by,
        "iterations": result.iterations,
        "sub_calls": result.sub_calls,
        "usage": result.usage,
        "cost_usd": result.cost_usd,
        "elapsed_s": round(result.elapsed_s, 3),
        "run_id": result.run_id,
        "scripted": scripted,
    }


def summary(result: RunResult) -> str:
    """The figures of a run in a line."""
    tokens_in = sum(used["input_tokens"] for used in result.usage.values())
    tokens_out = sum(used["output_tokens"] for used in result.usage.values())
    cost = "cost unknown" if result.cost_usd is None else f"${result.cost_usd:.4f}"
    stopped = "" if result.stopped_by == "answer" else f", cut short by {result.stopped_by}"
    return (
        f"{result.elapsed_s:.1f} s, {result.iterations} iterations, {result.sub_calls:,} sub-calls, "
        f"{tokens_in:,} tokens in, {tokens_out:,} out, {cost}{stopped}"
    )
