"""What a run is told: frozen, keyword-only, checked when it is made."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from urllib.parse import urlsplit

from rlm.errors import InputError
from sandbox_image.redact import fits_header

REQUEST_TIMEOUT_S = 1_200.0  # a reasoning model may think for most of it


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
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and value < 0:
                raise InputError(f"{item.name} must not be negative: {value:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplLimits:
    """What one REPL may take. `memory_mib` is on top of what its context needs.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How a question is answered."""

    model: str = "gpt-5"
    """The root LM."""
    recursive_model: str = "gpt-5-nano"
    """The sub-LLM, and the root LM of child runs."""
    max_iterations: int = 10
    """Replies of the root LM before it is asked for its last word."""
    pool_size: int = 4
    """Workers at the most."""
    force_parallel: bool = False
    """Make the root LM chunk the context and use parallel_llm_query for every sub-call."""
    prompts: str = "default"
    """What the root LM is told: the name of a set in rlm/prompts, or a folder with one."""
    request_timeout_s: float = REQUEST_TIMEOUT_S
    """Seconds that one request to a model may take, its whole answer included."""
    sub_llm_chars: int = 200_000
    """Characters that a sub-LLM takes in one prompt, as told to the root LM."""
    limits: Limits = field(default_factory=Limits)
    repl: ReplLimits = field(default_factory=ReplLimits)

    def __post_init__(self) -> None:
        for name in ("max_iterations", "pool_size", "sub_llm_chars"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name} must be 1 or more: {value}")
        for name in ("cell_timeout_s", "max_output_chars"):
            if (value := getattr(self.repl, name)) <= 0:
                raise InputError(f"{name} must be more than 0: {value:g}")
        for name in ("model", "recursive_model"):
            if not getattr(self, name).strip():
                raise InputError(f"{name} must name a model")
        if not 0 < self.request_timeout_s < math.inf:
            raise InputError(f"request_timeout_s must be more than 0: {self.request_timeout_s:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Who answers: the key, and the base URL of an OpenAI-compatible API (None is OpenAI's own)."""

    api_key: str = field(repr=False)
    base_url: str | None = None
    scripted: bool = False
    """Whether this is our own offline model, so that nobody takes its answers for an LLM's."""

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
