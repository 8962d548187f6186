"""The command line: rlm ask | niah | doctor | bench | offline-llm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rlm.bench.commands import bench
from rlm.exits import ended
from rlm.options import FILE, RunCommand, RunOptions, haystack_options, run_options
from rlm.terminal import hold_standard_descriptors, say


class Commands(click.Group):
    """The group whose commands end with our exit statuses: see `ended`."""

    def main(self, *arguments: Any, **extra: Any) -> Any:  # noqa: ANN401  # as click has it
        """Run the program."""
        hold_standard_descriptors()
        return super().main(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  # as click has it
        """Run a command; what we raise on purpose becomes one line on stderr."""
        with ended():
            return super().invoke(ctx)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="rlm-modal")
def main() -> None:
    """Recursive Language Models: answer questions over contexts of any size."""


main.add_command(bench)


@main.command(cls=RunCommand)
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
def ask(question: str, contexts: tuple[str, ...], options: RunOptions) -> None:
    """Answer QUESTION over a context, and print the answer.

    One file is given to the root LM as its text (a .json or .jsonl file as its value); a folder or several
    files as a dict of name to text.
    """
    from rlm.results import show_answer
    from rlm.running import answer_question
    from rlm.runs.request import Paths

    result = answer_question(question, Paths(contexts), options)
    sys.exit(show_answer(result, as_json=options.as_json, quiet=options.quiet))


@main.command(cls=RunCommand)
@haystack_options
@run_options
def niah(num_lines: int, seed: int | None, options: RunOptions) -> None:
    """Find a magic number in a haystack of random words (the needle-in-a-haystack benchmark).

    Without OPENAI_API_KEY and OPENAI_BASE_URL the scripted model answers, as with --offline.
    """
    from dataclasses import replace

    from rlm.bench.niah import QUESTION, haystacks
    from rlm.environment import has_provider
    from rlm.results import show_needle
    from rlm.running import answer_question

    if options.mode == "local" and not has_provider(options.environment):
        options = replace(options, offline=True)
    (haystack,) = haystacks(num_lines, seed)
    result = answer_question(QUESTION, haystack, options)
    sys.exit(show_needle(result, haystack, as_json=options.as_json))


@main.command()
@click.option("--ask", "asks", is_flag=True, help="Ask the sub-LLM one short question, which costs next to nothing.")
@click.option("--recursive-model", default="gpt-5-nano", show_default=True, help="The sub-LLM.")
@click.option("--env-file", type=FILE, help="Read OPENAI_API_KEY and OPENAI_BASE_URL from this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def doctor(*, asks: bool, recursive_model: str, env_file: Path | None, as_json: bool) -> None:
    """Say what works here, and what to do where it does not; the exit status is 1 when something fails.

    The provider is asked only with --ask, and Modal only where there is a token.
    """
    from itertools import chain

    from rlm.doctor import here, show
    from rlm.environment import environment_with
    from rlm.modal.doctor import on_modal

    found = here(environment_with(env_file), recursive_model if asks else None)
    sys.exit(show(chain(found, on_modal()), as_json=as_json))


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
    from rlm.offline.server import RELAY_NOTICE, SCRIPTED_NOTICE, run_offline
    from rlm.offline.settings import OfflineSettings, read_script

    def announce(base_url: str) -> None:
        say(SCRIPTED_NOTICE if settings["relay"] is None else RELAY_NOTICE)
        click.echo(f"OPENAI_BASE_URL={base_url}")

    replies = read_script(script) if script is not None else None
    run_offline(OfflineSettings(script=replies, **settings), port=port, on_listening=announce)
