"""The one modal.App: Images, Secrets, Functions, local entrypoints. Composition only; the parts are in `rlm`.

modal run modal_app.py --num-lines 100000        the needle-in-a-haystack benchmark; --help for its options
modal run modal_app.py::ask --question "..." --context PATH
modal deploy modal_app.py                        the HTTPS API, with workers that stay warm
modal serve modal_app.py                         the same while you edit
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import modal

import rlm
import sandbox_image
from rlm.backend import Backend
from rlm.config import Provider
from rlm.engine import RLM
from rlm.events import Emit, Event
from rlm.live import events_of
from rlm.modal import commands, runs
from rlm.modal.reconcile import SweepPolicy, sweep
from rlm.modal.registry import DictRegistry
from rlm.modal.repl import ModalReplLauncher
from rlm.modal.workers import OPENAI_URL, ModalWorkerLauncher, WorkerSandbox, connect, registry_scope
from rlm.progress import PlainView
from rlm.run import RunResult
from rlm.runs.request import RunRequest
from rlm.usage import load_prices

MINUTES = 60
HOURS = 60 * MINUTES
SANDBOX_FOLDER = Path(sandbox_image.__file__).parent
RLM_FOLDER = Path(rlm.__file__).parent
NOT_SHIPPED = ["**/__pycache__"]

if modal.is_local():
    commands.check_arguments(sys.argv)

app = modal.App("rlm")

base = modal.Image.debian_slim(python_version="3.11")
worker_image = base.pip_install_from_requirements(str(SANDBOX_FOLDER / "requirements.txt")).add_local_dir(
    SANDBOX_FOLDER, "/root/sandbox_image", ignore=NOT_SHIPPED
)
repl_image = base.pip_install("numpy==2.4.6", "pandas==3.1.1", "regex==2026.11.15").add_local_dir(
    SANDBOX_FOLDER, "/root/sandbox_image", ignore=NOT_SHIPPED
)
function_image = (
    base.pip_install_from_requirements(str(SANDBOX_FOLDER / "requirements.txt"))
    .pip_install("python-dotenv==1.2.4", "click==8.5.1", "rich==15.0.0", "markdown-it-py==4.3.0")
    .add_local_dir(SANDBOX_FOLDER, "/root/sandbox_image", ignore=NOT_SHIPPED)
    .add_local_dir(RLM_FOLDER, "/root/rlm", ignore=NOT_SHIPPED)
)

workers = modal.Dict.from_name("rlm-workers", create_if_missing=True)
records = modal.Dict.from_name("rlm-runs", create_if_missing=True)
contexts = modal.Volume.from_name("rlm-contexts", create_if_missing=True)


def provider_secret() -> modal.Secret:
    """The key: from the file that --env-file names, else the Secret openai-secret.

    Modal makes the Functions before it reads an entrypoint's options, so the option is looked for here.
    """
    if modal.is_local() and (values := runs.secret_values(sys.argv)) is not None:
        return modal.Secret.from_dict(values)
    return modal.Secret.from_name("openai-secret", required_keys=["OPENAI_API_KEY"])


provider_secrets = [provider_secret()]
solving: dict[str, Any] = {
    "image": function_image,
    "secrets": provider_secrets,
    "volumes": {runs.UPLOADS: contexts},
    "timeout": 6 * HOURS,
    "cpu": 1.0,
    "memory": 1_024,
}


def rlm_for(request: RunRequest, tell: Emit) -> RLM:
    """The RLM of one run, in a container: its REPL a Sandbox of its own, its workers those of the App."""
    provider = Provider.from_environment()
    spec = worker_sandbox(provider)
    backend = Backend(
        repl_launcher=ModalReplLauncher(app, repl_image, run_id=request.run_id),
        worker_launcher=ModalWorkerLauncher(spec),
        registry=DictRegistry(workers, scope=spec.scope, size=request.config.pool_size),
        connect=connect,
    )
    prices = load_prices(provider.base_url, request.prices)
    return RLM(request.config, provider=provider, prices=prices, backend=backend, on_event=tell)


def worker_sandbox(provider: Provider) -> WorkerSandbox:
    """What the workers of the App are made of."""
    environment = provider.environment()
    return WorkerSandbox(
        app=app,
        image=worker_image,
        secret=modal.Secret.from_dict(dict(environment)),
        scope=registry_scope(app.app_id or "", *environment.values()),
        base_url=provider.base_url or OPENAI_URL,
    )


@app.function(**solving)
async def solve(request: RunRequest) -> RunResult:
    """One run."""
    return await runs.make_recorded(request, rlm_for(request, PlainView(sys.stderr)), records, contexts)


@app.function(**solving)
async def solve_live(request: RunRequest) -> AsyncIterator[Event | RunResult]:
    """One run, its events as they happen; the last item is the result."""
    async for item in events_of(
        lambda tell: runs.make_recorded(request, rlm_for(request, tell), records, contexts, tell)
    ):
        yield item


@app.function(image=function_image, secrets=provider_secrets, schedule=modal.Period(minutes=5), max_containers=1)
async def reconcile() -> dict[str, int]:
    """Bring Sandboxes and registry together again; what was found and done, as counts."""
    scope = worker_sandbox(Provider.from_environment()).scope
    return await sweep(app.app_id or "", DictRegistry(workers, scope=scope), SweepPolicy())


@app.function(image=function_image, secrets=[runs.optional_secret("rlm-api-token")], max_containers=4)
@modal.concurrent(max_inputs=100)
@modal.asgi_app()
def web() -> Any:
    """The HTTPS API."""
    from rlm.web.app import create_app

    return create_app(runs.DictRunStore(records, solve), token=os.environ.get("RLM_API_TOKEN", ""))


async def run_once(request: RunRequest, tell: Emit) -> RunResult:
    """A run on an App that is there for its time: what `rlm --mode modal` does."""
    with runs.as_platform_error():
        async with app.run():
            return await runs.follow(request, solve_live, contexts, tell)


functions = commands.Functions(solve=solve, solve_live=solve_live, contexts=contexts)


@app.local_entrypoint()
def main(*arguments: str) -> None:
    """Find the magic number in a haystack of random words; with --repeats N, in N of them at once."""
    commands.run(commands.main, arguments, functions)


@app.local_entrypoint()
def ask(*arguments: str) -> None:
    """Answer a question over files or folders of this machine."""
    commands.run(commands.ask, arguments, functions)


def __dir__() -> list[str]:
    """The names of this module; `ask` only where it is asked for.

    `modal run modal_app.py` takes the one local entrypoint that a module shows, and refuses to choose between two.
    """
    return [name for name in globals() if name != "ask" or any(word.endswith("::ask") for word in sys.argv)]
