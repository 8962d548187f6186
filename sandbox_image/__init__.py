"""What goes into the Sandbox images: the REPL driver and the sub-LLM worker."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def driver_path() -> Path:
    """The file that a REPL process runs."""
    return _beside("driver.py")


def worker_path() -> Path:
    """The file that a worker process runs."""
    return _beside("worker.py")


def _beside(name: str) -> Path:
    from pathlib import Path  # 4 ms that a REPL need not spend on its start

    return Path(__file__).with_name(name)
