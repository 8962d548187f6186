"""What goes into the Sandbox images: the REPL driver and the sub-LLM worker."""

from pathlib import Path


def driver_path() -> Path:
    """The file that a REPL process runs."""
    return Path(__file__).with_name("driver.py")


def worker_path() -> Path:
    """The file that a worker process runs."""
    return Path(__file__).with_name("worker.py")
