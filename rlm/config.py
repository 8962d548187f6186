"""What a run is told: frozen, keyword-only, checked when it is made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from rlm.errors import InputError
from sandbox_image.redact import fits_header

REQUEST_TIMEOUT_S = 1_200.0  # a reasoning model may think for most of it

MAX_ITERATIONS = 1_000
MAX_POOL_SIZE = 64
MAX_CHILDREN = 64
MAX_DEPTH = 8
MAX_OUTPUT_CHARS = 1_000_000
MAX_SUB_LLM_CHARS = 20_000_000
MAX_NUMBER = 10**15  # of anything


def check_count(name: str, value: object, *, least: int = 0, most: int = MAX_NUMBER) -> None:
    """Refuse what is no whole number from `least` to `most`.

    Raises: InputError.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number: {value!r:.40}")
    if value < least:
        raise InputError(f"{name} must {'not be negative' if least == 0 else f'be {least} or more'}: {value}")
    if value > most:
        raise InputError(f"{name} must be {most:,} at the most: {value:,}")


def check_amount(name: str, value: object, *, above_zero: bool = False) -> None:
    """Refuse what is no number of 0 or more.

    Raises: InputError.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MAX_NUMBER:
        raise InputError(f"{name} must be a number: {value!r:.40}")
    if value < 0:
        raise InputError(f"{name} must not be negative: {value:g}")
    if above_zero and value == 0:
        raise InputError(f"{name} must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run, with all its child runs, may spend. None is without limit."""

    max_calls: int | None = None
    """Sub-LLM calls."""
    max_tokens: int | None = None
    """Tokens, in and out, of the root LM and the sub-LLMs together."""
    max_usd: float | None = None
    """US dollars. Needs a known price for every model of the run."""
    timeout_s: float | None = None
    """Seconds from the start of the run."""
    max_depth: int = 1
    """How deep child runs (rlm_query) may nest; at 0 they are plain sub-LLM calls."""

    def __post_init__(self) -> None:
        for name, check in (
            ("max_calls", check_count),
            ("max_tokens", check_count),
            ("max_usd", check_amount),
            ("timeout_s", check_amount),
        ):
            if (value := getattr(self, name)) is not None:
                check(name, value)
        check_count("max_depth", self.max_depth, most=MAX_DEPTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplLimits:
    """What one REPL may take, with all the processes that its cells start.

    `memory_mib` is on top of what its context needs. `file_mib` bounds one file, `disk_mib` all of them; where they
    are in memory, as on this machine, they count as memory too.

    A cell is interrupted after `cell_timeout_s`, and killed with its REPL when it still runs
    `interrupt_grace_s` later. The time it waits for sub-LLMs does not count; `cell_max_s` bounds it with all waits.
    """

    cell_timeout_s: float = 120.0
    cell_max_s: float = 21_600.0
    interrupt_grace_s: float = 5.0
    max_output_chars: int = 10_000
    memory_mib: int = 8_192
    processes: int = 512
    file_mib: int = 1_024
    disk_mib: int = 2_048

    def __post_init__(self) -> None:
        check_amount("cell_timeout_s", self.cell_timeout_s, above_zero=True)
        check_amount("cell_max_s", self.cell_max_s, above_zero=True)
        check_amount("interrupt_grace_s", self.interrupt_grace_s)
        check_count("max_output_chars", self.max_output_chars, least=1, most=MAX_OUTPUT_CHARS)
        for name in ("memory_mib", "processes", "file_mib"):
            check_count(name, getattr(self, name), least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How a question is answered."""

    model: str = "gpt-5"
    """The root LM."""
    recursive_model: str = "gpt-5-nano"
    """The sub-LLM, and the root LM of child runs."""
    max_iterations: int = 10
    """Replies of the root LM before the last request, which asks for the answer alone."""
    pool_size: int = 4
    """Workers at the most."""
    max_children: int = 4
    """Child runs (rlm_query) that go on at once, at each depth of the tree; more wait for their turn."""
    force_parallel: bool = False
    """Make the root LM chunk the context and use parallel_llm_query for every sub-call."""
    prompts: str = "default"
    """What the root LM is told: the name of a set in rlm/prompts, or a folder with one."""
    request_timeout_s: float = REQUEST_TIMEOUT_S
    """Seconds that one request to a model may take, its whole answer included."""
    sub_llm_chars: int = 200_000
    """Characters that a sub-LLM takes in one prompt; a longer one is refused in the cell."""
    limits: Limits = field(default_factory=Limits)
    repl: ReplLimits = field(default_factory=ReplLimits)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunConfig:
        """The configuration from fields of it, of its `limits` and of its `repl`, all by their own names.

        Raises: InputError for figures that make no sense.
        """

        def of_kind(kind: type) -> dict[str, Any]:
            return {item.name: given[item.name] for item in fields(kind) if item.name in given}

        return cls(**of_kind(cls), limits=Limits(**of_kind(Limits)), repl=ReplLimits(**of_kind(ReplLimits)))

    def __post_init__(self) -> None:
        check_count("max_iterations", self.max_iterations, least=1, most=MAX_ITERATIONS)
        check_count("pool_size", self.pool_size, least=1, most=MAX_POOL_SIZE)
        check_count("max_children", self.max_children, least=1, most=MAX_CHILDREN)
        check_count("sub_llm_chars", self.sub_llm_chars, least=1, most=MAX_SUB_LLM_CHARS)
        for name, kind in (("model", "model"), ("recursive_model", "model"), ("prompts", "set of prompts")):
            if not getattr(self, name).strip():
                raise InputError(f"{name} must name a {kind}")
        check_amount("request_timeout_s", self.request_timeout_s, above_zero=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Who answers: the key, and the base URL of an OpenAI-compatible API (None is OpenAI's own)."""

    api_key: str = field(repr=False)
    base_url: str | None = None
    scripted: bool = False
    """Whether this is our own offline model, so that nobody takes its answers for an LLM's."""

    @property
    def host(self) -> str:
        """Where requests go: the host, with its port where one is named."""
        return "api.openai.com" if self.base_url is None else urlsplit(self.base_url).netloc

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Provider:
        """The provider that OPENAI_API_KEY and OPENAI_BASE_URL name. A server of one's own may want no key.

        Raises: InputError when there is neither, or they cannot be used; neither is in the message.
        """
        api_key = environment.get("OPENAI_API_KEY", "").strip()
        base_url = environment.get("OPENAI_BASE_URL", "").strip() or None
        if base_url is not None:
            check_base_url(base_url)
        if not api_key and base_url is None:
            raise InputError("there is no OPENAI_API_KEY: set it, name a file with --env-file, or try --offline")
        if api_key and not fits_header(api_key):
            raise InputError("OPENAI_API_KEY has characters that no HTTP header can carry")
        return cls(api_key=api_key or "none", base_url=base_url)

    def environment(self) -> dict[str, str]:
        """The variables from which `from_environment` makes the same again, for a worker."""
        base_url = {} if self.base_url is None else {"OPENAI_BASE_URL": self.base_url}
        return {"OPENAI_API_KEY": self.api_key, **base_url}


def check_base_url(base_url: str) -> None:
    """Raises: InputError unless requests can be sent there."""
    try:
        url = urlsplit(base_url)
        called = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        called = False
    if not called:
        raise InputError("OPENAI_BASE_URL is not an http(s) URL")
    if "@" in url.netloc:
        raise InputError("OPENAI_BASE_URL must not hold a user name or a password: the key is in OPENAI_API_KEY")
