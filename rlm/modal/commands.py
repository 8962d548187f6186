"""What `modal run` does with the App: its arguments are those of `rlm`, parsed and checked before Modal begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import modal

from rlm.bench.niah import QUESTION, haystacks
from rlm.events import Emit
from rlm.exits import ended
from rlm.interrupts import interruptible, run_interruptibly
from rlm.modal.runs import as_platform_error, follow
from rlm.options import RunCommand, RunOptions, haystack_options, modal_run_options
from rlm.results import show_answer, show_needle, told
from rlm.run import RunResult
from rlm.running import ON_MODAL, plain_view, watched, who_is_asked
from rlm.runs.request import Paths, RunRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """What of an App makes runs: one run, one run with its events, and the Volume that brings its context."""

    solve: modal.Function[Any, Any, Any]
    solve_live: modal.Function[Any, Any, Any]
    contexts: modal.Volume

    async def run_live(self, request: RunRequest, tell: Emit) -> RunResult:
        """One run, its events as they happen."""
        with as_platform_error():
            return await follow(request, self.solve_live, self.contexts, tell)

    async def run_all(self, requests: Sequence[RunRequest]) -> list[RunResult]:
        """Runs at once, which share the workers."""
        with as_platform_error():
            return [result async for result in self.solve.map.aio(requests)]


@click.command(cls=RunCommand)
@haystack_options
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Haystacks, all at once.")
@modal_run_options
@click.pass_obj
def main(functions: Functions, num_lines: int, seed: int | None, repeats: int, options: RunOptions) -> int:
    """Find a magic number in a haystack of random words; with --repeats N, in N of them at once."""
    some = haystacks(num_lines, seed, repeats)
    with told(options) as so_far:
        if repeats == 1:
            shown = plain_view(options, who_is_asked(options, ON_MODAL))
            results = [watched(QUESTION, some[0], options, functions.run_live, shown, so_far)]
        else:
            requests = [
                RunRequest(question=QUESTION, source=one, config=options.config, prices=options.prices) for one in some
            ]
            with interruptible():
                results = run_interruptibly(functions.run_all(requests))
    return max(
        show_needle(result, haystack, as_json=options.as_json, out=sys.__stdout__)
        for result, haystack in zip(results, some, strict=True)
    )


@click.command(cls=RunCommand)
@click.option("--question", required=True, help="What is to be answered.")
@click.option(
    "--context", "contexts", multiple=True, required=True, metavar="PATH", help="A file or a folder of this machine."
)
@modal_run_options
@click.pass_obj
def ask(functions: Functions, question: str, contexts: tuple[str, ...], options: RunOptions) -> int:
    """Answer a question over files or folders of this machine, and print the answer."""
    shown = plain_view(options, who_is_asked(options, ON_MODAL))
    with told(options) as so_far:
        result = watched(question, Paths(contexts), options, functions.run_live, shown, so_far)
    return show_answer(result, as_json=options.as_json, quiet=options.quiet, out=sys.__stdout__)


COMMANDS = {"main": main, "ask": ask}


def asked_for(argv: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """The entrypoint and its arguments, when the process is `modal run modal_app.py[::NAME] ARGUMENTS`."""
    for number, word in enumerate(argv):
        file, _, name = word.partition("::")
        if "run" in argv[1:number] and file.endswith(("modal_app.py", "modal_app")):
            return name.removeprefix("app.") or "main", argv[number + 1 :]
    return None


def check_arguments(argv: Sequence[str]) -> None:
    """End `modal run` before it has begun: for --help, or for arguments that make no sense.

    Modal reads them only once the App is there, and has no help for arguments that it passes on as they are.
    Its own lines go to standard error from here on, so that a result stands alone on standard output.
    """
    found = asked_for(argv)
    if found is None or found[0] not in COMMANDS:
        return
    name, arguments = found
    try:
        with ended():
            COMMANDS[name].make_context("modal run modal_app.py::" + name, list(arguments))
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    sys.stdout = sys.stderr


def run(command: click.Command, arguments: Sequence[str], functions: Functions) -> None:
    """Run an entrypoint on an App that is there."""
    with ended(), command.make_context("modal run", list(arguments), obj=functions) as ctx:
        status = command.invoke(ctx)
    if status:
        sys.exit(status)
