"""What the pool needs of the world: a launcher that starts workers, a registry that remembers them, and a client
that talks to one of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from rlm.usage import TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One sub-LLM call to make: the whole prompt, and the model to ask."""

    text: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a sub-LLM answered, `cut` when it reached its output limit.

    `attempts` and `usage` count every try, `latency_s` the last one, in seconds.
    """

    index: int
    text: str
    usage: TokenUsage
    attempts: int
    latency_s: float
    worker: str
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEntry:
    """A running worker: where it is, the token it asks for, and when its life ends (`time.time()` seconds)."""

    id: str
    url: str
    token: str
    created: float
    expires: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A worker's answer to one prompt, `cut` when the sub-LLM reached its output limit."""

    text: str
    usage: TokenUsage
    cut: bool = False


# As told at `sandbox_image.failures.ProviderFailedError`.
FailureKind = Literal[
    "rate_limited",
    "transient",
    "empty",
    "declined",
    "key_refused",
    "out_of_quota",
    "wrong_url",
    "unknown_model",
    "context_window",
    "refused",
]


@dataclass(frozen=True, slots=True)
class ProviderFailure:
    """The worker is well, its provider gave no answer.

    `message` holds the provider's words, `usage` what was paid for all the same.
    """

    kind: FailureKind
    message: str
    retry_after_s: float | None
    usage: TokenUsage = field(default_factory=TokenUsage)


@dataclass(frozen=True, slots=True)
class WorkerBusy:
    """The worker has as many prompts in flight as it takes."""

    retry_after_s: float


class WorkerClient(Protocol):
    """Talks to one worker."""

    async def complete(self, prompt: Prompt) -> Answer | ProviderFailure | WorkerBusy:
        """Have one prompt answered.

        Raises: WorkerError when it is the worker that is at fault.
        """

    async def check(self) -> None:
        """Find out whether the worker is well and takes our token.

        Raises: WorkerError when not.
        """

    async def aclose(self) -> None:
        """Hang up. Calls still in flight end with a WorkerError."""


class Connect(Protocol):
    """Makes the client of a worker."""

    def __call__(self, entry: WorkerEntry, *, timeout_s: float) -> WorkerClient:
        """A client that gives each prompt `timeout_s`."""


class WorkerLauncher(Protocol):
    """Starts and ends worker processes."""

    async def start(self) -> WorkerEntry:
        """Start one worker and wait until it answers.

        Raises: WorkerError when it does not come up; nothing of it is left behind then, nor when it is cancelled.
        """

    async def stop(self, entry: WorkerEntry) -> None:
        """End the worker. Does nothing when it has ended already."""


class WorkerRegistry(Protocol):
    """Which worker holds which slot of the pool. One entry per slot; slots are 0 .. pool size - 1.

    Raises: WorkerError, from every method, when the registry does not answer.
    """

    @property
    def outlives_pool(self) -> bool:
        """Whether later pools find these entries: then a pool leaves its workers running when it closes."""

    @property
    def claim_life_s(self) -> float:
        """How long a claim lasts unless it is renewed; then its owner has died, and others may take the slot."""

    async def entries(self) -> dict[int, WorkerEntry]:
        """Every slot that has a worker."""

    async def entry(self, slot: int) -> WorkerEntry | None:
        """The worker of one slot."""

    async def claim(self, slot: int) -> str | None:
        """Take the right to start the worker of an empty slot. None if another has it already."""

    async def renew(self, slot: int, claim: str) -> None:
        """Let a claim last anew from now on. Does nothing when it was lost meanwhile."""

    async def publish(self, slot: int, claim: str, entry: WorkerEntry) -> bool:
        """Fill a claimed slot. False when the claim was lost meanwhile: the caller ends the worker it started."""

    async def release(self, slot: int, claim: str) -> None:
        """Give a claim back, the worker having failed to start."""

    async def remove(self, slot: int, entry: WorkerEntry) -> None:
        """Empty the slot if it still holds this very worker."""
