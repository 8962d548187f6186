"""What a run may spend. A tree: what a child run spends, its parents spend too."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rlm import events
from rlm.config import Limits
from rlm.errors import LimitReachedError
from rlm.events import CellCost
from rlm.usage import PriceList, TokenUsage

CHARS_PER_TOKEN = 4
LAST_REQUEST_MAX_S = 120.0
LAST_REQUEST_SHARE = 0.2  # of a run's time, kept back for its last request


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
    answers are known only afterwards, so a run may end above a limit by the answers that were under way, and by
    its last request, which is never refused.
    """

    def __init__(self, limits: Limits, prices: PriceList, parent: Budget | None = None) -> None:
        self._limits = limits
        self._prices = prices
        self._parent = parent
        self._started = time.monotonic()
        self._kept_back_s = min(LAST_REQUEST_MAX_S, LAST_REQUEST_SHARE * (limits.timeout_s or 0.0))
        self._sub_calls = 0
        self._reserved: Counter[str] = Counter()  # input tokens by model
        self.by_model: dict[str, Tally] = {}

    def child(self) -> Budget:
        """The budget of a child run: without limits of its own, within all of ours."""
        return Budget(Limits(), self._prices, self)

    def _line(self) -> Iterator[Budget]:
        budget: Budget | None = self
        while budget is not None:
            yield budget
            budget = budget._parent

    # Spending.

    def reserve(self, model: str, prompt_chars: Sequence[int]) -> Reservation:
        """Set aside what sub-LLM calls with prompts of these lengths will cost at least.

        Raises: LimitReachedError when that is more than what is left; nothing is set aside then.
        """
        self._check(len(prompt_chars), model, prompt_chars)
        return Reservation(self, model, prompt_chars, calls_each=1)

    def reserve_reply(self, model: str, prompt_chars: int) -> Reservation:
        """The same for a reply of this run's root LM. In a child run that is one of its parent's sub-LLM calls.

        Raises: LimitReachedError when it would cost more than what is left.
        """
        calls_each = 0 if self._parent is None else 1
        self._check(calls_each, model, [prompt_chars])
        return Reservation(self, model, [prompt_chars], calls_each=calls_each)

    def reserve_last_reply(self, model: str, prompt_chars: int) -> Reservation:
        """The same for the reply that ends a run: it may go over a limit, but not in a child run.

        Raises: LimitReachedError in a child run, as `reserve_reply`.
        """
        if self._parent is not None:
            return self.reserve_reply(model, prompt_chars)
        return Reservation(self, model, [prompt_chars], calls_each=0)

    def _set_aside(self, model: str, calls: int, tokens: int) -> None:
        for budget in self._line():
            budget._sub_calls += calls
            budget._reserved[model] += tokens

    def spend(self, model: str, used: TokenUsage) -> None:
        """Count a call that nothing is set aside for."""
        for budget in self._line():
            tally = budget.by_model.setdefault(model, Tally())
            tally.calls += 1
            tally.tokens += used

    def _check(self, calls: int, model: str, prompt_chars: Sequence[int]) -> None:
        tokens = TokenUsage(input_tokens=sum(map(estimated_tokens, prompt_chars)))
        usd = self._prices.cost_usd(model, tokens) or 0.0
        for budget in self._line():
            for kind, used, limit in budget._spent():
                asked = {"calls": calls, "tokens": tokens.total_tokens, "usd": usd}.get(kind, 0)
                if limit is not None and used + asked > limit:
                    raise LimitReachedError(kind, used=used, limit=limit, asked=asked)

    # Looking.

    def _spent(self) -> Iterator[tuple[str, float, float | None]]:
        """By kind: what is spent or set aside, and the limit."""
        limits = self._limits
        yield "calls", self._sub_calls, limits.max_calls
        yield "tokens", self.total.total_tokens + self._reserved.total(), limits.max_tokens
        yield "usd", (self.cost_usd or 0.0) + self._reserved_usd(), limits.max_usd
        yield "time", time.monotonic() - self._started + self._kept_back_s, limits.timeout_s

    def _reserved_usd(self) -> float:
        reserved = ((model, TokenUsage(input_tokens=tokens)) for model, tokens in self._reserved.items())
        return sum(self._prices.cost_usd(model, tokens) or 0.0 for model, tokens in reserved)

    @property
    def total(self) -> TokenUsage:
        """Tokens of all models."""
        return sum((tally.tokens for tally in self.by_model.values()), TokenUsage())

    @property
    def sub_calls(self) -> int:
        """Sub-LLM calls made or under way, those of child runs and the replies of their root LMs too."""
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

    def account(self) -> dict[str, dict[str, float | None]]:
        """By kind (calls, tokens, usd, seconds) what is "spent" and what is "left": None is unknown, or no limit."""
        spent = {
            "calls": self._sub_calls,
            "tokens": self.total.total_tokens,
            "usd": self.cost_usd,
            "seconds": time.monotonic() - self._started,
        }
        return {kind: {"spent": spent[kind], "left": left} for kind, left in self.left().items()}

    def spent_event(self, run_id: str) -> events.Spent:
        """What the run has spent, as an event."""
        return events.Spent(run_id=run_id, tokens=self.total, sub_calls=self._sub_calls, cost_usd=self.cost_usd)

    def measure(self) -> Callable[[], CellCost]:
        """Begin to measure; what is given tells what was spent since."""
        started, calls, tokens, usd = time.monotonic(), self._sub_calls, self.total.total_tokens, self.cost_usd

        def since() -> CellCost:
            now_usd = self.cost_usd
            return CellCost(
                seconds=time.monotonic() - started,
                calls=self._sub_calls - calls,
                tokens=self.total.total_tokens - tokens,
                usd=None if now_usd is None or usd is None else now_usd - usd,
            )

        return since

    # Time.

    @contextlib.asynccontextmanager
    async def within_time(self) -> AsyncIterator[None]:
        """Cancel what is inside when the run's time is up, but for the share of its last request.

        Raises: LimitReachedError then.
        """
        try:
            async with asyncio.timeout(self.left()["seconds"]) as time_left:
                yield
        except TimeoutError:
            if not time_left.expired():
                raise
            limit_s = min(budget._limits.timeout_s or math.inf for budget in self._line())
            raise LimitReachedError("time", used=limit_s, limit=limit_s) from None

    def last_request_s(self) -> float:
        """Seconds that the run's last request may take."""
        left_s = self.left()["seconds"]
        if left_s is not None and self._limits.timeout_s is not None:
            left_s = max(0.0, self._limits.timeout_s - (time.monotonic() - self._started))
        return LAST_REQUEST_MAX_S if left_s is None else min(LAST_REQUEST_MAX_S, left_s)


class Reservation:
    """What is set aside for the calls of a batch: each is settled once, by its index.

    Use as `with`: at the end, what was not settled is given back. A call that had `begun` may have been paid for,
    so that it still counts as a call.
    """

    def __init__(self, budget: Budget, model: str, prompt_chars: Sequence[int], *, calls_each: int) -> None:
        self._budget = budget
        self._model = model
        self._calls_each = calls_each
        self._tokens = {index: estimated_tokens(chars) for index, chars in enumerate(prompt_chars)}
        self._begun: set[int] = set()
        budget._set_aside(model, calls_each * len(self._tokens), sum(self._tokens.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        never_made = self._tokens.keys() - self._begun
        self._budget._set_aside(self._model, -self._calls_each * len(never_made), -sum(self._tokens.values()))
        self._tokens.clear()

    def begin(self, index: int) -> None:
        """The call is being made."""
        self._begun.add(index)

    def settle(self, index: int, used: TokenUsage | None) -> None:
        """Put what the call really used (None: it failed at no cost) in the place of what was set aside for it.

        Raises: KeyError when it was settled before.
        """
        self._budget._set_aside(self._model, 0, -self._tokens.pop(index))
        if used is not None:
            self._budget.spend(self._model, used)
