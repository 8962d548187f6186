"""Recursive Language Models on Modal: answer questions over contexts of any size.

from rlm import RLM

    result = RLM().completion("What is the magic number?", context)
    print(result.answer)

In an event loop: `await RLM().run(question, context)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlm.config import Limits, Provider, ReplLimits, RunConfig
    from rlm.engine import RLM
    from rlm.errors import RLMError
    from rlm.run import RunResult

__version__ = "0.1.0"

__all__ = ["RLM", "Limits", "Provider", "RLMError", "ReplLimits", "RunConfig", "RunResult"]

_HOMES = {
    "Limits": "rlm.config",
    "Provider": "rlm.config",
    "RLM": "rlm.engine",
    "RLMError": "rlm.errors",
    "ReplLimits": "rlm.config",
    "RunConfig": "rlm.config",
    "RunResult": "rlm.run",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    """Import a public name when it is first used: `import rlm` alone takes a hundredth of a second."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
