"""The options of a run, as a command line gives them: said once, for `rlm` and for `modal run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from rlm.errors import InputError, RLMError

if TYPE_CHECKING:
    from rlm.config import RunConfig

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)


class RunOption(click.Option):
    """One of the options that make `RunOptions`."""


option = partial(click.option, cls=RunOption)

PLACE = (
    option("--mode", type=click.Choice(["local", "modal"]), default="local", show_default=True, help="Where it runs."),
    option("--offline", is_flag=True, help="Use the scripted model: no key, no network, no LLM."),
)
RUN = (
    option("--model", default="gpt-5", show_default=True, help="The root LM."),
    option(
        "--recursive-model", default="gpt-5-nano", show_default=True, help="The sub-LLM, and the root LM of child runs."
    ),
    option(
        "--max-iterations",
        type=int,
        default=10,
        show_default=True,
        help="Replies of the root LM before it is asked for the answer alone.",
    ),
    option("--pool-size", type=int, default=4, show_default=True, help="Workers at the most."),
    option(
        "--force-parallel",
        is_flag=True,
        help="Make the root LM chunk the context and use parallel_llm_query for every sub-call.",
    ),
    option(
        "--prompts",
        default="default",
        show_default=True,
        metavar="NAME|DIR",
        help="What the root LM is told: a set of prompts (default, small), or a folder with one.",
    ),
    option(
        "--cell-timeout-s",
        type=float,
        default=120.0,
        show_default=True,
        help="Seconds a cell may run, waiting for sub-LLMs not counted.",
    ),
    option(
        "--max-output-chars",
        type=int,
        default=10_000,
        show_default=True,
        help="Characters of a cell's output that the root LM sees.",
    ),
    option(
        "--sub-llm-chars",
        type=int,
        default=200_000,
        show_default=True,
        help="Characters a sub-LLM takes in one prompt.",
    ),
    option(
        "--request-timeout-s",
        type=float,
        default=1_200.0,
        show_default=True,
        help="Seconds one request to a model may take, its whole answer included.",
    ),
    option("--max-calls", type=int, help="Limit of sub-LLM calls."),
    option("--max-tokens", type=int, help="Limit of tokens, in and out, of all models."),
    option("--max-usd", type=float, help="Limit of cost in US dollars."),
    option("--timeout-s", type=float, help="Limit of the whole run, in seconds."),
    option("--max-depth", type=int, default=1, show_default=True, help="How deep child runs (rlm_query) may nest."),
    option(
        "--max-children", type=int, default=4, show_default=True, help="Child runs that go on at once, at each depth."
    ),
    option("--prices", type=FILE, help="Prices that override or add to rlm/prices.toml."),
    option("--env-file", type=FILE, help="Read OPENAI_API_KEY and OPENAI_BASE_URL from this file."),
    option("--log", type=FILE, help="Append the run log (JSON lines) to this file."),
    option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text."),
    option("--verbose", is_flag=True, help="Show the code of cells and what they gave, not a line of each."),
    option("--quiet", is_flag=True, help="Show nothing but errors, notices and the answer."),
)
PASSED_ON = ("log", "as_json", "verbose", "quiet", "mode", "offline")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the options ask for. `environment` is this process's own with what --env-file sets on top."""

    config: RunConfig
    environment: Mapping[str, str] = field(repr=False)
    env_file: Path | None = None
    """Never a part of the context."""
    prices: str = ""
    """The text of the file that --prices names."""
    log: Path | None = None
    as_json: bool = False
    verbose: bool = False
    quiet: bool = False
    mode: Literal["local", "modal"] = "local"
    offline: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunOptions:
        """The options by the names that click gives them.

        Raises: InputError for a file that cannot be read, and for figures that make no sense.
        """
        from rlm.config import RunConfig
        from rlm.environment import environment_with, small_text
        from rlm.usage import load_prices

        if given["verbose"] and given["quiet"]:
            raise InputError("--verbose and --quiet are two views: give one of them")
        prices = "" if given["prices"] is None else small_text(given["prices"])
        load_prices(None, prices)  # so that a form that cannot be used is told before anything is started
        return cls(
            config=RunConfig.of(given),
            environment=environment_with(given["env_file"]),
            prices=prices,
            env_file=given["env_file"],
            **{name: given[name] for name in PASSED_ON if name in given},
        )


class RunCommand(click.Command):
    """A command that gets its options of a run as the one argument `options`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and check all that can be checked before anything is started."""
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:  # this is no shell completion
            names = [str(param.name) for param in self.params if isinstance(param, RunOption)]
            given = {name: ctx.params.pop(name) for name in names}
            try:
                ctx.params["options"] = RunOptions.of(given)
            except RLMError as exc:
                if given["as_json"]:
                    from rlm.results import show_failure
                    from rlm.so_far import SoFar

                    show_failure(SoFar().result("error"), str(exc))
                raise
        return rest


def run_options(command: F) -> F:
    """The options of a run, for a command that may make it here or on Modal."""
    return _with(PLACE + RUN, command)


def modal_run_options(command: F) -> F:
    """The same for a command that Modal runs."""
    return _with(RUN, command)


def haystack_options(command: F) -> F:
    """What the needle-in-a-haystack benchmark is made of."""
    lines = click.option(
        "--num-lines",
        type=click.IntRange(min=1),
        default=100_000,
        show_default=True,
        help="Lines of the haystack.",
    )
    seed = click.option("--seed", type=int, help="The same seed gives the same haystack. [default: a random one]")
    return _with((lines, seed), command)


def _with(options: tuple[Callable[[F], F], ...], command: F) -> F:
    for add in reversed(options):
        command = add(command)
    return command
