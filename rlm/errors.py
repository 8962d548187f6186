"""The error tree.

    RLMError
    ├── InputError              what the user gave cannot be used: the CLI ends with status 2
    ├── ProviderError           the LLM provider refused, or could not be reached: the CLI ends with status 3
    │   ├── KeyRefusedError     the provider does not accept the API key (401, 403)
    │   ├── UnknownModelError   the provider has no model of that name
    │   ├── ContextWindowError  the messages are longer than the model takes
    │   └── EmptyReplyError     the model gave no words, several times over, or declined to answer
    ├── SubLLMError             one sub-LLM prompt failed for good; raised in the cell that asked for it
    ├── WorkerError             one worker is at fault: it is evicted, its prompts go to another
    ├── PoolBrokenError         workers keep dying; starting more would not help
    ├── ReplDiedError           the REPL process ended; the loop goes on in a fresh one
    ├── ReplBrokenError         the REPL cannot be started, or speaks no protocol we know
    ├── PlatformError           Modal refused a request, or could not be reached: no token, no Secret, a limit
    └── LimitReachedError       a limit of the run is used up, or too near: kind, used, limit, asked

What a cell did wrong is not here: it is data for the root LM, in the cell's result. Errors of vendors are
translated once, in the adapter that calls the vendor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm.usage import TokenUsage


class RLMError(Exception):
    """The root of every error this package raises on purpose. The message is one line with the remedy."""


def in_one_line(exc: RLMError) -> str:
    """What a command prints of an error that ends it."""
    return f"rlm: {' '.join(str(exc).split())}"


def exit_status(exc: RLMError) -> int:
    """What a command that the error ends exits with: 2 for bad input, 3 for everything else."""
    return 2 if isinstance(exc, InputError) else 3


class InputError(RLMError):
    """What the user gave cannot be used."""


class ProviderError(RLMError):
    """The LLM provider refused a request for good, or could not be reached.

    `usage` is what was paid for in vain: answers without a word.
    """

    usage: TokenUsage | None = None


class KeyRefusedError(ProviderError):
    """The provider does not accept the API key. Ends the run at once."""


class UnknownModelError(ProviderError):
    """The provider has no model of that name. Ends the run at once."""


class ContextWindowError(ProviderError):
    """The messages are longer than the model's window."""


class EmptyReplyError(ProviderError):
    """The model gave no words, several times over, or declined to answer."""


class SubLLMError(RLMError):
    """One sub-LLM prompt failed for good. The message holds the provider's words.

    `index` is the prompt's place in its batch, `attempts` the number of times it was tried, `usage` what was paid
    for in vain: answers without a word.
    """

    usage: TokenUsage | None = None

    def __init__(self, message: str, *, index: int = 0, attempts: int = 1) -> None:
        super().__init__(message)
        self.index = index
        self.attempts = attempts


class WorkerError(RLMError):
    """A worker did not answer as a worker does: gone, unreachable, refusing our token, or answering nonsense."""


class PoolBrokenError(RLMError):
    """Too many workers died or failed to start in a row, so the pool starts no more."""


class ReplDiedError(RLMError):
    """The REPL process ended while a session held it. The message says how."""


class ReplBrokenError(RLMError):
    """The REPL could not be started, or what it sends is not the protocol."""


class PlatformError(RLMError):
    """Modal refused a request, or could not be reached."""


class LimitReachedError(RLMError):
    """A limit of the run is used up, or leaves too little for what was asked.

    `kind` is what `stopped_by` will say ("calls", "tokens", "usd", "time"); `used`, `limit` and `asked` (0: nothing
    more was asked for) are in that unit.
    """

    def __init__(self, kind: str, *, used: float, limit: float, asked: float = 0) -> None:
        super().__init__(_limit_message(kind, used, limit, asked))
        self.kind = kind
        self.used = used
        self.limit = limit
        self.asked = asked

    def __reduce__(self) -> tuple[Callable[[], LimitReachedError], tuple[()], dict[str, object]]:
        """As it is made: `Exception` would be made again from its message."""
        again = partial(LimitReachedError, self.kind, used=self.used, limit=self.limit, asked=self.asked)
        return again, (), self.__dict__


_AMOUNTS = {"usd": "${:,.4f}", "time": "{:,.4g} seconds", "calls": "{:,.0f} calls", "tokens": "{:,.0f} tokens"}


def _limit_message(kind: str, used: float, limit: float, asked: float) -> str:
    amount = _AMOUNTS.get(kind, f"{{:g}} {kind}")
    whole = f"the run's limit of {amount.format(limit)}"
    if not asked or used >= limit:
        return f"{whole} is used up"
    left = amount.format(max(0, limit - used)).removesuffix(f" {kind}")
    return f"{amount.format(asked)} asked for, {left} left of {whole}"
