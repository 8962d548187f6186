"""Being slow and cruel on purpose.

The per-RPC faults act at the wire, before or after the RPC; the rest is done to processes by the services that own
them. All methods may be called from any thread while the double runs.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any

from grpclib import GRPCError, Status

WEB_CUT_S = 150.0


class Faults:
    """Fault injection. `rpc` is the name on the wire: `DictGet`, `SandboxCreateV2`, `TaskExecStart`, …"""

    def __init__(self) -> None:
        self._latency_s: dict[str, float] = {}
        self._unavailable: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._rate: tuple[int, float] | None = None
        self._created: deque[float] = deque()
        self.sandbox_start_s = 0.0
        self.web_cut_s = WEB_CUT_S
        self._owners: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {}
        self._run: Callable[[Coroutine[Any, Any, Any]], Any] | None = None

    # Set by tests

    def latency(self, rpc: str, seconds: float) -> None:
        """Delay every `rpc`; `"*"` stands for all of them; 0 undoes it."""
        self._latency_s[rpc] = seconds

    def unavailable(self, rpc: str, n: int = 1) -> None:
        """The next `n` calls of `rpc` are UNAVAILABLE and have no effect."""
        self._unavailable[rpc] += n

    def lose_reply(self, rpc: str, n: int = 1) -> None:
        """The next `n` calls of `rpc` take effect, and the client is told UNAVAILABLE: it will retry a success."""
        self._lost[rpc] += n

    def sandbox_latency(self, seconds: float) -> None:
        """A Sandbox is scheduled this long after its creation has returned."""
        self.sandbox_start_s = seconds

    def creation_rate(self, n: int, per_s: float = 1.0) -> None:
        """At most `n` Sandbox creations in `per_s` seconds; more are RESOURCE_EXHAUSTED. `n=0` lifts the limit."""
        self._rate = (n, per_s) if n else None
        self._created.clear()

    def cut_web_answers(self, after_s: float) -> None:
        """A web Function that has not begun to answer after this long is answered for by a 303; Modal takes 150 s."""
        self.web_cut_s = after_s

    def clear(self) -> None:
        """Be kind again: no latency, no refusals, no limits."""
        for armed in (self._latency_s, self._unavailable, self._lost):
            armed.clear()
        self.creation_rate(0)
        self.sandbox_start_s = 0.0
        self.web_cut_s = WEB_CUT_S

    def kill_sandbox(self, sandbox_id: str, *, after_s: float = 0.0) -> None:
        """The Sandbox dies as if its worker had, now or in a while."""
        self._do("kill_sandbox", sandbox_id, after_s)

    def kill_container(self, task_id: str, *, after_s: float = 0.0) -> None:
        """The Function container dies; its inputs run again in another, a bounded number of times."""
        self._do("kill_container", task_id, after_s)

    def preempt(self, function: str) -> int:
        """Preempt every container that runs an input of the Function named so (or with that id).

        Each gets SIGINT, a moment to leave, and SIGKILL; its inputs run again from the start. Returns how many
        containers were preempted.
        """
        return int(self._do("preempt", function))

    def expire_tokens(self, sandbox_id: str | None = None) -> int:
        """Every connect token given out so far (of this Sandbox, or of all) is 401 from now on. Returns how many."""
        return int(self._do("expire_tokens", sandbox_id))

    # Used by the double

    def bind(self, run: Callable[[Coroutine[Any, Any, Any]], Any], *owners: object) -> None:
        """Find who carries out what: methods named `fault_<name>` of the services."""
        self._run = run
        for owner in owners:
            for name in dir(owner):
                if name.startswith("fault_"):
                    self._owners[name.removeprefix("fault_")] = getattr(owner, name)

    async def before(self, rpc: str) -> None:
        delay = self._latency_s.get(rpc, 0.0) or self._latency_s.get("*", 0.0)
        if delay:
            await asyncio.sleep(delay)
        if self._unavailable[rpc] > 0:
            self._unavailable[rpc] -= 1
            raise GRPCError(Status.UNAVAILABLE, f"{rpc} is unavailable on purpose")

    def after(self, rpc: str) -> None:
        if self._lost[rpc] > 0:
            self._lost[rpc] -= 1
            raise GRPCError(Status.UNAVAILABLE, f"the reply of {rpc} is lost on purpose")

    def admit_creation(self) -> None:
        if self._rate is None:
            return
        n, per_s = self._rate
        now = time.monotonic()
        while self._created and now - self._created[0] > per_s:
            self._created.popleft()
        if len(self._created) >= n:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"more than {n} Sandbox creations in {per_s:g} s")
        self._created.append(now)

    def _do(self, name: str, *args: object) -> Any:
        if self._run is None:
            raise RuntimeError("the double is not running")
        return self._run(self._owners[name](*args))
