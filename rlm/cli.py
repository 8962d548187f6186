"""The command line: rlm ask | niah | bench | offline-llm."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rlm.bench.commands import bench

if TYPE_CHECKING:
    from rlm.run import RunResult

F = TypeVar("F", bound=Callable[..., Any])

ANSWERED, NO_ANSWER, INTERRUPTED = 0, 3, 130


class Commands(click.Group):
    """The group whose commands end with our exit statuses: 0 answered, 2 bad input, 3 no answer, 130 interrupted."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  # as click has it
        """Run a command; what we raise on purpose becomes one line on stderr."""
        from asyncio import CancelledError

        from rlm.errors import RLMError, exit_status, in_one_line

        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, CancelledError):
            click.echo("rlm: interrupted", err=True)
            sys.exit(INTERRUPTED)
        except RLMError as exc:
            click.echo(in_one_line(exc), err=True)
            sys.exit(exit_status(exc))


def run_options(command: F) -> F:
    """The options that every command which runs an RLM has."""
    options = (
        click.option(
            "--mode", type=click.Choice(["local", "modal"]), default="local", show_default=True, help="Where it runs."
        ),
        click.option("--model", default="gpt-5", show_default=True, help="The root LM."),
        click.option(
            "--recursive-model",
            default="gpt-5-nano",
            show_default=True,
            help="The sub-LLM, and the root LM of child runs.",
        ),
        click.option(
            "--max-iterations",
            type=int,
            default=10,
            show_default=True,
            help="Replies of the root LM before it is asked for its last word.",
        ),
        click.option("--pool-size", type=int, default=4, show_default=True, help="Workers at the most."),
        click.option(
            "--force-parallel",
            is_flag=True,
            help="Make the root LM chunk the context and use parallel_llm_query for every sub-call.",
        ),
        click.option(
            "--cell-timeout-s",
            type=float,
            default=120.0,
            show_default=True,
            help="Seconds a cell may run, waiting for sub-LLMs not counted.",
        ),
        click.option(
            "--max-output-chars",
            type=int,
            default=10_000,
            show_default=True,
            help="Characters of a cell's output that the root LM sees.",
        ),
        click.option(
            "--sub-llm-chars",
            type=int,
            default=200_000,
            show_default=True,
            help="Characters a sub-LLM takes in one prompt.",
        ),
        click.option(
            "--request-timeout-s",
            type=float,
            default=1_200.0,
            show_default=True,
            help="Seconds one request to a model may take, its whole answer included.",
        ),
        click.option("--max-calls", type=int, help="Limit of sub-LLM calls."),
        click.option("--max-tokens", type=int, help="Limit of tokens, in and out, of all models."),
        click.option("--max-usd", type=float, help="Limit of cost in US dollars."),
        click.option("--timeout-s", type=float, help="Limit of the whole run, in seconds."),
        click.option(
            "--max-depth", type=int, default=1, show_default=True, help="How deep child runs (rlm_query) may nest."
        ),
        click.option(
            "--prices", type=click.Path(path_type=Path), help="Prices that override or add to rlm/prices.toml."
        ),
        click.option(
            "--env-file",
            type=click.Path(path_type=Path),
            help="Read OPENAI_API_KEY and OPENAI_BASE_URL from this file.",
        ),
        click.option("--offline", is_flag=True, help="Use the scripted model: no key, no network, no LLM."),
        click.option("--log", type=click.Path(path_type=Path), help="Append the run log (JSON lines) to this file."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="rlm-modal")
def main() -> None:
    """Recursive Language Models: answer questions over contexts of any size."""


main.add_command(bench)


@main.command()
@click.argument("question")
@click.option(
    "--context",
    "contexts",
    multiple=True,
    required=True,
    metavar="PATH",
    help="A file or a folder, or - for standard input. May be given several times.",
)
@run_options
def ask(question: str, contexts: tuple[str, ...], as_json: bool, **options: Any) -> None:  # noqa: ANN401, FBT001
    """Answer QUESTION over a context, and print the answer.

    One file is given to the root LM as its text (a .json or .jsonl file as its value); a folder or several
    files as a dict of name to text.
    """
    from rlm import report
    from rlm.running import answer_question
    from rlm.runs.request import Paths

    result = answer_question(question, Paths(contexts), **options)
    if as_json:
        click.echo(json.dumps(report.as_json(result)))
    else:
        click.echo(report.summary(result), err=True)
        if result.answer is not None:
            click.echo(for_terminal(result.answer))
    finish(result)


@main.command()
@click.option("--num-lines", type=int, default=100_000, show_default=True, help="Lines of the haystack.")
@click.option("--seed", type=int, help="The same seed gives the same haystack. [default: a random one]")
@run_options
def niah(num_lines: int, seed: int | None, as_json: bool, offline: bool, **options: Any) -> None:  # noqa: ANN401, FBT001
    """Find a magic number in a haystack of random words (the needle-in-a-haystack benchmark).

    Without OPENAI_API_KEY and OPENAI_BASE_URL the scripted model answers, as with --offline.
    """
    import random

    from rlm import report
    from rlm.bench.niah import QUESTION, HaystackLines, expected_number
    from rlm.environment import has_provider
    from rlm.errors import InputError
    from rlm.running import answer_question

    if num_lines < 1:
        raise InputError(f"--num-lines must be 1 or more: {num_lines}")
    seed = random.randrange(2**32) if seed is None else seed
    offline = offline or (options["mode"] == "local" and not has_provider(options["env_file"]))
    result = answer_question(QUESTION, HaystackLines(num_lines, seed), offline=offline, **options)
    expected = expected_number(seed)
    if as_json:
        click.echo(json.dumps(report.niah_as_json(result, expected=expected, seed=seed)))
    else:
        click.echo(for_terminal(report.niah_lines(result, expected=expected, seed=seed)))
    finish(result)


@main.command("offline-llm")
@click.option("--port", type=int, default=0, help="Where to listen on 127.0.0.1. [default: a free port]")
@click.option("--latency-s", type=float, default=0.0, show_default=True, help="Seconds every answer takes.")
@click.option("--jitter", type=float, default=0.0, show_default=True, help="Share of the latency that varies, 0 to 1.")
@click.option("--error-rate", type=float, default=0.0, show_default=True, help="Share of requests answered 500.")
@click.option("--rate-limit", type=float, default=0.0, help="Requests a second; more are answered 429. [default: none]")
@click.option(
    "--script",
    type=click.Path(path_type=Path),
    help="Replies that the root LM gives one after another, in a text file with lines of --- between them.",
)
@click.option(
    "--relay",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Let somebody answer for the root LM: each request becomes DIR/0001.request.md, its answer is what is "
    "written to DIR/0001.reply.md.",
)
@click.option("--relay-subs", is_flag=True, help="With --relay: sub-LLM calls go there, too.")
def offline_llm(port: int, script: Path | None, **settings: Any) -> None:  # noqa: ANN401
    """Serve the scripted model behind OpenAI's API on 127.0.0.1, for demos and tests."""
    from rlm.offline.server import SCRIPTED_NOTICE, run_offline
    from rlm.offline.settings import OfflineSettings, read_script

    def announce(base_url: str) -> None:
        click.echo(SCRIPTED_NOTICE, err=True)
        click.echo(f"OPENAI_BASE_URL={base_url}")

    replies = read_script(script) if script is not None else None
    run_offline(OfflineSettings(script=replies, **settings), port=port, on_listening=announce)


def for_terminal(text: str) -> str:
    """The text as it is for a pipe; for a terminal without what would drive it."""
    from rlm.progress import visible

    return visible(text) if sys.stdout.isatty() else text


def finish(result: RunResult) -> None:
    """Exit with the status that the result asks for."""
    sys.exit(ANSWERED if result.answer is not None else NO_ANSWER)
