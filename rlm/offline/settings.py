"""How the offline model behaves, and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from rlm.errors import InputError


class WrongAnswer(Enum):
    """How an answer with status 200 is none, or not all of one. Each is paid for."""

    EMPTY = "empty"
    DECLINED = "declined"
    """A refusal in place of the text."""
    FILTERED = "filtered"
    """Half of the text, and finish_reason "content_filter"."""
    CUT = "cut"
    """Half of the text, and finish_reason "length"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong for a prompt whose last message holds `match`, the first `times` it is asked.

    `times` counts for each distinct prompt by itself. The request first hangs for `hang_s`; then the connection is
    dropped, or `status` is answered with `headers`, or, with neither, the usual answer, which `answer` may spoil.
    """

    match: str = ""
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    hang_s: float = 0
    answer: WrongAnswer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineSettings:
    """How the server behaves.

    Raises: InputError for values that make no sense.
    """

    latency_s: float = 0
    """Time to the answer, or to the first chunk of a stream."""
    jitter: float = 0
    """Share of the latency by which it varies to both sides, 0 to 1."""
    error_rate: float = 0
    """Share of the requests that get status 500. A prompt asked again draws again."""
    rate_limit: float = 0
    """Requests a second (0 is no limit), in bursts of up to one second's worth; 429 with Retry-After over it."""
    seed: int = 0
    script: tuple[str, ...] | None = None
    """The root LM's replies: reply k goes to a request with k assistant messages, the last one to all further."""
    relay: Path | None = None
    """A folder through which somebody answers for the root LM: see `rlm.offline.relay`."""
    relay_subs: bool = False
    """Whether sub-LLM calls go there, too."""
    sub_replies: Callable[[str], str] | None = None
    """The rule for sub-LLM calls, prompt to answer. It runs in the server's thread."""
    api_key: str | None = None
    """The one bearer token that is accepted; None accepts any."""
    models: tuple[str, ...] | None = None
    """The models there are; None is any name."""
    window_tokens: int | None = None
    streams: bool = True
    """Whether it can stream; where not, who asks for that gets status 400."""
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if min(self.latency_s, self.rate_limit) < 0 or not 0 <= self.jitter <= 1 or not 0 <= self.error_rate <= 1:
            raise InputError("latency and rate limit cannot be negative; jitter and error rate go from 0 to 1")
        if self.script is not None and not self.script:
            raise InputError("the script of the offline model holds no reply")
        if self.relay_subs and self.relay is None:
            raise InputError("--relay-subs needs --relay: the folder to which they go")


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineStats:
    """What the server was asked since it started. A root request has a system message, a sub request has none."""

    requests: int
    root_requests: int
    sub_requests: int
    answered: int
    errors: Mapping[int, int]
    """Refused requests by status."""
    dropped: int
    """Connections closed by a fault."""
    abandoned: int
    """Requests whose client left before the answer: those are not answered."""
    in_flight: int
    peak_in_flight: int
    distinct_sub_prompts: int
    prompts_answered_more_than_once: int
    """Sub-LLM prompts that got more than one status 200."""
    recent_prompts: Sequence[str]
    """The last of the latest prompts' messages, cut to 200 characters, newest last."""


def read_script(path: Path) -> tuple[str, ...]:
    """The root LM's replies in a text file, separated by lines that hold only `---`.

    Raises: InputError when there is none to read.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeError) as exc:
        raise InputError(f"cannot read the script {path}: {exc}") from exc
    return tuple(reply.strip("\n") for reply in f"\n{text}".split("\n---\n") if reply.strip())
