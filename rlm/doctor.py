"""`rlm doctor`: what works on this machine, and what to do where it does not."""

from __future__ import annotations

import asyncio
import json
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rlm.config import Provider
from rlm.errors import InputError, ProviderError
from rlm.local.isolation import TOOLS, Choice, choose
from rlm.models import ModelReply, OpenAIChatModel, shown
from rlm.scratch import folder
from rlm.terminal import deliver, in_one_line
from rlm.workers.retry import RetryPolicy

PACKAGE = "rlm-modal"
NAMESAKE = "rlms"
GIB = 2**30
ROOM_GIB = 4  # what a context from a pipe may take of it
ASK_TIMEOUT_S = 60.0
ASK_POLICY = RetryPolicy(attempts=2, wordless=1, max_wait_s=0)
SHORT_QUESTION = "Reply with the one word: ok"
BETTER_KEPT_APART = (
    "install bubblewrap, or let this user make namespaces (a container may forbid it); for contexts that you do not "
    "trust use --mode modal or a virtual machine"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy` is what to do about it, and empty when it is well."""

    what: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""

    def line(self) -> str:
        """It as the one line that a user reads."""
        told = f"{self.what}: {self.found}" + (f" -> {self.remedy}" if self.remedy else "")
        return f"{self.state:<4}  {in_one_line(told)}"


def show(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print each finding as soon as it is there, or all as one JSON object; the exit status: 1 when one is a fail."""
    all_of_them: list[Finding] = []
    delivered = True
    for finding in findings:
        all_of_them.append(finding)
        if not as_json:
            delivered = deliver(finding.line()) and delivered
    well = all(finding.state != "fail" for finding in all_of_them)
    if as_json:
        delivered = deliver(json.dumps({"ok": well, "findings": [asdict(finding) for finding in all_of_them]}))
    return 0 if well and delivered else 1


def here(environment: Mapping[str, str], ask: str | None) -> Iterator[Finding]:
    """What there is on this machine. The model that `ask` names is asked one short question."""
    yield python()
    yield packages()
    try:
        provider = Provider.from_environment(environment)
    except InputError as exc:
        remedy = "set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own; without them only --offline works"
        yield Finding("provider", "fail", str(exc), remedy)
    else:
        key = "no key" if provider.api_key == "none" else "a key"
        yield Finding("provider", "ok", f"{shown(provider.base_url)}, with {key}" + ("; not asked" if not ask else ""))
        if ask:
            yield answering(provider, ask)
    yield temporary_files()
    yield isolation()


def python() -> Finding:
    """The interpreter, and the system under it."""
    found = f"{platform.python_version()} ({sys.executable}), {platform.system()} {platform.release()}"
    if sys.platform != "linux":
        return Finding("Python", "fail", found, "the REPL and the workers run on Linux: use a container or a machine")
    return Finding("Python", "ok", found)


def packages() -> Finding:
    """This package and what it needs; and none beside it that is imported by the same name."""
    if version_of(PACKAGE) is None:
        return Finding("packages", "fail", f"{PACKAGE} is not installed in this environment", "pip install .")
    needed = [requirement for requirement in metadata.requires(PACKAGE) or [] if "extra ==" not in requirement]
    wanted = [PACKAGE, *(re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in needed)]
    there = {name: version for name in wanted if (version := version_of(name)) is not None}
    found = ", ".join(f"{name} {version}" for name, version in there.items())
    if missing := [name for name in wanted if name not in there]:
        return Finding("packages", "fail", f"{', '.join(missing)} missing; {found}", "install rlm again")
    if (theirs := version_of(NAMESAKE)) is not None:
        return Finding(
            "packages",
            "fail",
            f"{NAMESAKE} {theirs} is in this environment too, and is also imported as rlm; {found}",
            "give each an environment of its own",
        )
    return Finding("packages", "ok", found)


def version_of(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def answering(provider: Provider, model: str) -> Finding:
    """Whether a model answers, and how long it takes."""
    try:
        reply = asyncio.run(answer_of(provider, model))
    except ProviderError as exc:
        return Finding("sub-LLM", "fail", str(exc), "see OPENAI_API_KEY, OPENAI_BASE_URL, --recursive-model")
    tokens = reply.usage.total_tokens
    return Finding(
        "sub-LLM",
        "ok",
        f"{model!r} at {shown(provider.base_url)} answered in {reply.latency_s:.1f} s, with {tokens:,} tokens",
    )


async def answer_of(provider: Provider, model: str) -> ModelReply:
    """What the model says to one short question. Raises: ProviderError."""
    async with OpenAIChatModel(provider, model, timeout_s=ASK_TIMEOUT_S, policy=ASK_POLICY) as llm:
        return await llm.complete([{"role": "user", "content": SHORT_QUESTION}])


def temporary_files() -> Finding:
    """Whether contexts and REPLs have room for their files."""
    remedy = "set TMPDIR to a folder with more room"
    try:
        with folder("context") as path:
            place = path.parent
            (path / "trial").write_bytes(bytes(4096))
            usage = shutil.disk_usage(path)
    except InputError as exc:
        return Finding("temporary files", "fail", str(exc), remedy)
    except OSError as exc:
        place = Path(tempfile.gettempdir())
        return Finding("temporary files", "fail", f"cannot write to {place}: {exc.strerror or exc}", remedy)
    found = f"{place} has {usage.free / GIB:.1f} GiB left of {usage.total / GIB:.1f}"
    if usage.free < ROOM_GIB * GIB:
        return Finding("temporary files", "warn", f"{found}; a context from a pipe may take {ROOM_GIB}", remedy)
    return Finding("temporary files", "ok", found)


def isolation(choice: Choice | None = None) -> Finding:
    """How far model-written code is kept apart here: by what was chosen, or else by the best tool that works."""
    try:
        choice = choice or choose(TOOLS)
    except InputError as exc:
        return Finding("isolation", "fail", f"not tried: {exc}", "set TMPDIR to a folder with more room")
    notice = choice.notice()
    if notice is None:
        kept = f"{choice.tool}: model-written code has files and processes of its own, no network and no key"
        return Finding("isolation", "ok", kept)
    return Finding("isolation", "fail" if choice.tool is None else "warn", notice, BETTER_KEPT_APART)
