"""What a run may spend. A tree: what a child run spends, its parents spend too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rlm.config import Limits
from rlm.errors import LimitReachedError
from rlm.usage import PriceList, TokenUsage

CHARS_PER_TOKEN = 4


def estimated_tokens(chars: int) -> int:
    """Tokens of a text of that many characters, as a rule of thumb for what must be reserved before a call."""
    return -(-chars // CHARS_PER_TOKEN)


@dataclass(slots=True)
class Tally:
    """What one model was asked, and used."""

    calls: int = 0
    tokens: TokenUsage = field(default_factory=TokenUsage)


class Budget:
    """Reserve before a call, settle after it.

    Calls and the tokens of prompts are reserved, so no batch starts that could not be paid; the tokens of
    answers are known only afterwards, so a run may end above a limit by the answers that were under way.
    """

    def __init__(self, limits: Limits, prices: PriceList, parent: Budget | None = None) -> None:
        self._limits = limits
        self._prices = prices
        self._parent = parent
        self._started = time.monotonic()
        self._sub_calls = 0
        self._reserved = TokenUsage()
        self._reserved_usd = 0.0
        self.by_model: dict[str, Tally] = {}

    def child(self) -> Budget:
        """The budget of a child run: without limits of its own, within all of ours."""
        return Budget(Limits(max_depth=self._limits.max_depth), self._prices, self)

    def _line(self) -> Iterator[Budget]:
        budget: Budget | None = self
        while budget is not None:
            yield budget
            budget = budget._parent

    # Spending.

    def reserve(self, model: str, prompt_chars: list[int]) -> None:
        """Set aside what the sub-LLM calls with prompts of these lengths will cost at least.

        Raises: LimitReachedError when that is more than what is left; nothing is set aside then.
        """
        needed = TokenUsage(input_tokens=sum(map(estimated_tokens, prompt_chars)))
        for budget in self._line():
            budget._check(len(prompt_chars), needed, model)
        for budget in self._line():
            budget._sub_calls += len(prompt_chars)
            budget._hold(model, needed, 1)

    def settle(self, model: str, prompt_chars: int, used: TokenUsage | None) -> None:
        """Put what a reserved call really used (None: it failed) in the place of what was set aside for it."""
        for budget in self._line():
            budget._hold(model, TokenUsage(input_tokens=estimated_tokens(prompt_chars)), -1)
        if used is not None:
            self.spend(model, used)

    def spend(self, model: str, used: TokenUsage) -> None:
        """Count a call that nothing was set aside for."""
        for budget in self._line():
            tally = budget.by_model.setdefault(model, Tally())
            tally.calls += 1
            tally.tokens += used

    def _hold(self, model: str, tokens: TokenUsage, sign: int) -> None:
        self._reserved += TokenUsage(input_tokens=sign * tokens.input_tokens)
        self._reserved_usd += sign * (self._prices.cost_usd(model, tokens) or 0.0)

    def _check(self, calls: int, tokens: TokenUsage, model: str) -> None:
        usd = self._prices.cost_usd(model, tokens) or 0.0
        for kind, used, limit in self._spent():
            more = {"calls": calls, "tokens": tokens.total_tokens, "usd": usd}.get(kind, 0)
            if limit is not None and used + more > limit:
                raise LimitReachedError(kind, used=used, limit=limit)

    # Looking.

    def _spent(self) -> Iterator[tuple[str, float, float | None]]:
        limits = self._limits
        yield "calls", self._sub_calls, limits.max_calls
        yield "tokens", self.total.total_tokens + self._reserved.total_tokens, limits.max_tokens
        yield "usd", (self.cost_usd or 0.0) + self._reserved_usd, limits.max_usd
        yield "time", time.monotonic() - self._started, limits.timeout_s

    @property
    def total(self) -> TokenUsage:
        """Tokens of all models."""
        return sum((tally.tokens for tally in self.by_model.values()), TokenUsage())

    @property
    def sub_calls(self) -> int:
        """Sub-LLM calls made or under way, those of child runs too."""
        return self._sub_calls

    @property
    def cost_usd(self) -> float | None:
        """US dollars so far, or None where a price is not known."""
        costs = [self._prices.cost_usd(model, tally.tokens) for model, tally in self.by_model.items()]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if len(known) == len(costs) else None

    def used_up(self) -> LimitReachedError | None:
        """The limit that leaves nothing more to spend, if there is one."""
        for budget in self._line():
            for kind, used, limit in budget._spent():
                if limit is not None and used >= limit and not (kind == "calls" and limit == 0):
                    return LimitReachedError(kind, used=used, limit=limit)
        return None

    def left(self) -> dict[str, float | None]:
        """What is left by kind: calls, tokens, usd, seconds. None is without limit."""
        found: dict[str, float | None] = {"calls": None, "tokens": None, "usd": None, "seconds": None}
        for budget in self._line():
            for kind, used, limit in budget._spent():
                if limit is not None:
                    name = "seconds" if kind == "time" else kind
                    left, known = max(0, limit - used), found[name]
                    found[name] = left if known is None else min(left, known)
        return found
