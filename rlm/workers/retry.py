"""What becomes of a prompt that got no answer: tried again after a wait, or failed for good."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from rlm.errors import KeyRefusedError, ProviderError, SubLLMError, UnknownModelError, WorkerError
from rlm.usage import TokenUsage
from rlm.workers.base import ProviderFailure, WorkerBusy

WORDLESS = {"empty": "the answer was empty", "declined": "the model declined to answer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """What the pool does about failures. All times are in seconds."""

    attempts: int = 6
    """Tries a prompt gets when workers die under it or the provider has a passing fault."""
    wordless: int = 3
    """Of these, the tries that may end in an answer without a word in it, each of them paid for."""
    max_wait_s: float = 300
    """How long a prompt is held back by rate limits and busy workers, before that is a failure too."""
    base_s: float = 0.5
    """The longest wait before the first retry. It doubles with each, up to `cap_s`."""
    cap_s: float = 20
    deaths: int = 5
    """Workers that may, in a row, fail to start or die before their first completion; then the pool gives up."""
    end_of_life_s: float = 1_260
    """A worker that lives no longer than this takes no new prompts: a call could outlive it."""
    watch_s: float = 15
    """How often a worker that has prompts in flight and completes none is asked whether it is well."""

    wind_up_s: float = 5
    """How long a map that an error ends waits for its calls in flight: they are paid for."""
    closing_s: float = 60
    """How long a pool that closes in order waits for workers being started, which later pools will find."""

    def delay_s(self, failures: int) -> float:
        """A wait before the next try: anything up to the exponential bound, so that retries do not come in step."""
        return random.uniform(0, min(self.cap_s, self.base_s * 2 ** min(failures - 1, 30)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The prompt at `index`, tried `attempts` times so far, is tried again in `delay_s` seconds."""

    index: int
    attempts: int
    reason: str
    delay_s: float


@dataclass(slots=True)
class Tries:
    """What has happened to one prompt so far, and what follows from it."""

    policy: RetryPolicy
    index: int
    who: str = "the provider"
    attempts: int = 0  # calls that got past the worker's door
    failures: int = 0  # of these, the ones that count against the policy's attempts
    refusals: int = 0  # of these, the ones refused for the provider's rate limit
    wordless: int = 0  # of these, the ones that were paid for and held no answer
    usage: TokenUsage = field(default_factory=TokenUsage)  # of these
    held_back_since: float = math.inf  # when a rate limit or a busy worker first held it back

    def next(self, outcome: ProviderFailure | WorkerBusy | WorkerError, now: float) -> Retry:
        """Decide after a try that came to `outcome` at `now`, on a monotonic clock.

        Raises: SubLLMError when the prompt has failed for good; ProviderError when every other would, too.
        """
        match outcome:
            case WorkerBusy(retry_after_s=wait_s):
                return self._held_back("every worker is busy", wait_s, now)
            case WorkerError():  # not the provider's fault: another worker may have the prompt at once
                self.attempts += 1
                return self._failed(str(outcome), 0)
        self.attempts += 1
        self.usage += outcome.usage
        words = outcome.message
        match outcome.kind:
            case "rate_limited":
                self.refusals += 1
                return self._held_back(words, self._delay_s(self.refusals, outcome.retry_after_s), now)
            case "transient":
                return self._failed(words, self._delay_s(self.failures + 1, outcome.retry_after_s))
            case "empty" | "declined":
                return self._no_words(WORDLESS[outcome.kind], words)
            case "context_window" | "refused":
                raise self._given_up(words)
        error = self._hopeless(outcome.kind, words)
        error.usage = self.usage
        raise error

    def _delay_s(self, failures: int, asked_s: float | None) -> float:
        """As long as the provider asks, but never at once: a word of 0 s must not make a storm of us."""
        if asked_s is None:
            return self.policy.delay_s(failures)
        return max(asked_s, self.policy.delay_s(1))

    def _failed(self, words: str, wait_s: float) -> Retry:
        self.failures += 1
        if self.failures >= self.policy.attempts:
            raise self._given_up(f"failed {self.attempts} times, the last: {words}")
        return self._again(words, min(wait_s, self.policy.cap_s))

    def _no_words(self, what: str, words: str) -> Retry:
        self.wordless += 1
        self.failures += 1
        what = f"{what}: {words}" if words else what
        if self.wordless >= self.policy.wordless or self.failures >= self.policy.attempts:
            raise self._given_up(f"{what} ({self.wordless} times)" if self.wordless > 1 else what)
        return self._again(what, self.policy.delay_s(self.failures))

    def _held_back(self, words: str, wait_s: float, now: float) -> Retry:
        self.held_back_since = min(self.held_back_since, now)
        waited_s = now - self.held_back_since
        if waited_s + wait_s > self.policy.max_wait_s:
            raise self._given_up(f"held back for {waited_s:.0f} s, then asked to wait {wait_s:.0f} s more: {words}")
        return self._again(words, wait_s)

    def _again(self, words: str, wait_s: float) -> Retry:
        return Retry(index=self.index, attempts=self.attempts, reason=words, delay_s=wait_s)

    def _given_up(self, message: str) -> SubLLMError:
        error = SubLLMError(message, index=self.index, attempts=self.attempts)
        error.usage = self.usage
        return error

    def _hopeless(self, kind: str, words: str) -> ProviderError:
        match kind:
            case "key_refused":
                return KeyRefusedError(f"{self.who} does not accept the API key: {words} (see OPENAI_API_KEY)")
            case "out_of_quota":
                return ProviderError(f"the account's quota at {self.who} is used up: {words} (see its billing page)")
            case "unknown_model":
                return UnknownModelError(f"{self.who} has no model {words} (see --model, --recursive-model)")
            case _:
                return ProviderError(
                    f"{self.who} has no chat completions where OPENAI_BASE_URL points to: {words}; "
                    "the URL commonly ends in /v1"
                )
