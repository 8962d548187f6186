"""From the options of a command to a result: chooses who makes the run, and shows it while it goes on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from rlm import scratch
from rlm.config import Provider
from rlm.context import without
from rlm.engine import RLM
from rlm.errors import InputError
from rlm.events import Emit, Event
from rlm.interrupts import interruptible, run_interruptibly
from rlm.offline.scripted import FREE, scripted_config, serve_scripted
from rlm.options import RunOptions
from rlm.progress import PlainView, QuietView, TerminalView, View
from rlm.results import tell_what_was_found, told
from rlm.run import RunResult
from rlm.runs.log import RunLog
from rlm.runs.request import ContextSource, LocalFiles, Paths, RunRequest, make_run
from rlm.so_far import SoFar
from rlm.terminal import say
from rlm.usage import load_prices

ON_MODAL = "asked from Modal"  # the provider is what its Secret says

MakeRun: TypeAlias = Callable[[RunRequest, Emit], Coroutine[Any, Any, RunResult]]


def answer_question(question: str, source: ContextSource, options: RunOptions) -> RunResult:
    """Make the run that a command's options ask for, here or on Modal.

    Raises: InputError before anything is started, for what cannot be used; RLMError; Interrupted.
    """
    with contextlib.ExitStack() as stack:
        so_far = stack.enter_context(told(options))
        if options.mode == "modal":
            if options.offline:
                raise InputError("--offline is for --mode local: on Modal a provider is asked")
            from rlm.modal.app import modal_app  # it talks to Modal, so before there is an event loop

            make: MakeRun = modal_app().run_once
            asked = who_is_asked(options, ON_MODAL)
        elif options.offline:
            from rlm.offline.server import SCRIPTED_NOTICE

            say(SCRIPTED_NOTICE)
            options = replace(options, config=scripted_config(options.config))
            make = partial(run_here, stack.enter_context(serve_scripted()))
            asked = ""
        else:
            provider = Provider.from_environment(options.environment)
            make = partial(run_here, provider)
            asked = who_is_asked(options, f"at {provider.host}")
        return watched(question, source, options, make, view(options, asked), so_far)


def watched(
    question: str, source: ContextSource, options: RunOptions, make: MakeRun, shown: View, so_far: SoFar
) -> RunResult:
    """Make the run, shown while it goes on, and logged; a signal ends it in order. `so_far` hears its events.

    Raises: as `make` does; InputError; Interrupted.
    """
    request = RunRequest(question=question, source=source, config=options.config, prices=options.prices)
    log = None if options.log is None else RunLog(options.log)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(interruptible())
            listeners: list[Emit] = [so_far.hear]
            if log is not None:
                listeners.append(stack.enter_context(log))
            if isinstance(source, Paths):  # read outside the event loop, so that a pipe that waits can be interrupted
                files = source.open(stack.enter_context(scratch.folder("context")))
                if options.env_file is not None:
                    files = without(files, options.env_file)
                request = replace(request, source=LocalFiles(files))
            listeners.append(stack.enter_context(shown))

            def tell(event: Event) -> None:
                for listener in listeners:
                    listener(event)

            result = run_interruptibly(make(request, tell))
        if result.answer is None:
            tell_what_was_found(so_far, options.log)
        return result
    finally:
        if log is not None and log.trouble is not None:
            say(f"rlm: the log {log.path} is not complete: {log.trouble}")


async def run_here(provider: Provider, request: RunRequest, tell: Emit) -> RunResult:
    """The run, with every process on this machine."""
    prices = load_prices(provider.base_url, request.prices) if not provider.scripted else FREE
    return await make_run(RLM(request.config, provider=provider, prices=prices, on_event=tell), request)


def who_is_asked(options: RunOptions, where: str) -> str:
    """The models of a run and who serves them, said before any is asked and paid."""
    return f"root LM {options.config.model}, sub-LLM {options.config.recursive_model}, {where}"


def view(options: RunOptions, heading: str) -> View:
    """The live view on a terminal, plain lines elsewhere; `heading` is the first line."""
    if sys.stderr is None or options.quiet or not sys.stderr.isatty():
        return plain_view(options, heading)
    return TerminalView(sys.stderr, heading=heading, verbose=options.verbose)


def plain_view(options: RunOptions, heading: str) -> View:
    """Plain lines, also where a terminal is shared with what Modal shows."""
    if options.quiet:
        return QuietView(sys.stderr)
    return PlainView(sys.stderr, heading=heading, verbose=options.verbose)
