"""`rlm bench`: what it measures is imported only when it is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rlm.bench.speed.report import Report

F = TypeVar("F", bound=Callable[..., Any])


def report_options(command: F) -> F:
    """The options that every benchmark has."""
    peer = click.option(
        "--peer-python",
        type=click.Path(path_type=Path),
        help="The Python of a venv that has another RLM package (rlms): the same is measured there.",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
    return peer(as_json(command))


def show(report: Report, *, as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        report.show()


@click.group()
def bench() -> None:
    """Measure how fast the machinery is, against the offline model.

    Figures of one run can be compared with each other; those of two runs, or of two machines, hardly.
    """


@bench.command()
@click.option("--prompts", type=int, help="Prompts in a batch. [default: three cases, one after another]")
@click.option("--latency-s", type=float, help="Seconds the model takes for each. [default: 0 with --prompts]")
@click.option("--pool-size", type=int, default=4, show_default=True, help="Workers at the most.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Warm batches of each case; the median counts.")
@report_options
def fanout(
    prompts: int | None,
    latency_s: float | None,
    pool_size: int,
    rounds: int,
    peer_python: Path | None,
    as_json: bool,  # noqa: FBT001  # as click gives it
) -> None:
    """Sub-LLM calls in parallel, the whole way from a cell to the model and back."""
    from rlm.bench.speed.fanout import TABLE, Case, measure
    from rlm.bench.speed.peers import find_peer
    from rlm.errors import InputError

    if prompts is None and latency_s is not None:
        raise InputError("--latency-s needs --prompts")
    cases = TABLE if prompts is None else (Case(prompts=prompts, latency_s=latency_s or 0.0),)
    show(measure(cases, pool_size=pool_size, warm_rounds=rounds, peer=find_peer(peer_python)), as_json=as_json)


@bench.command()
@click.option("--cells", "count", type=int, default=1_000, show_default=True, help="Cells to run.")
@report_options
def cells(count: int, peer_python: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Cells with nothing in them, there and back, and the start of a REPL."""
    from rlm.bench.speed.cells import measure
    from rlm.bench.speed.peers import find_peer

    show(measure(count, peer=find_peer(peer_python)), as_json=as_json)


@bench.command()
@click.option("--mib", type=int, default=1_024, show_default=True, help="Size of the text.")
@report_options
def context(mib: int, peer_python: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """A large context until the first cell has run, and the memory it takes."""
    from rlm.bench.speed.context import measure
    from rlm.bench.speed.peers import find_peer

    show(measure(mib, peer=find_peer(peer_python)), as_json=as_json)


@bench.command()
@click.option("--runs", type=int, default=15, show_default=True, help="Processes of each kind; the median counts.")
@report_options
def startup(runs: int, peer_python: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """The start of the package and of the command line."""
    from rlm.bench.speed.peers import find_peer
    from rlm.bench.speed.startup import measure

    show(measure(runs, peer=find_peer(peer_python)), as_json=as_json)


@bench.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def modal(as_json: bool) -> None:  # noqa: FBT001
    """A run's parts on the stand-in for Modal: python -m tests.modal_double -- rlm bench modal."""
    from rlm.bench.speed.modal import measure

    show(measure(), as_json=as_json)
