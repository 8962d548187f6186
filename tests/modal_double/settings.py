"""What can be set when the double starts. Everything here is fixed for its life; faults are not (see `faults.py`)."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROXY_KEY = "wk-double"
PROXY_SECRET = "ws-double"


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "modal_double"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one double."""

    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Secrets that exist from the start, by name."""

    egress: bool = False
    """Let Sandboxes with a network reach the world by HTTPS, within their domain allowlist, through a proxy."""

    build: bool = False
    """Install the pip layers of each Image into a virtual environment of its own."""

    cache_dir: Path = field(default_factory=_default_cache)
    """Where `build` keeps its environments, by content."""

    port: int = 0
    """Port of the control plane on loopback; 0 takes a free one."""

    proxy_tokens: Mapping[str, str] = field(default_factory=lambda: {PROXY_KEY: PROXY_SECRET})
    """`Modal-Key` to `Modal-Secret`, accepted by web Functions with `requires_proxy_auth=True`."""

    max_containers: int = 16
    """Containers of one Function when the Function itself sets no `max_containers`."""

    starting_at_once: int = 2
    """Containers of one Function that may be starting at the same time; spares a small machine."""

    scaledown_s: float = 60.0
    """An idle container is stopped after this long, unless the Function sets `scaledown_window`."""

    stop_grace_s: float = 2.0
    """What a container gets to run its exit handlers before it is killed."""

    crash_retries: int = 3
    """How often an input whose container died is run again before it fails."""

    python: str = sys.executable
    """The interpreter that stands in for the one of an Image that is not built."""

    masked: tuple[str, ...] = field(default_factory=lambda: ("/root", "/home", "/tmp", os.getcwd()))
    """Host directories that no container sees, so that only what the Image holds can be imported."""
