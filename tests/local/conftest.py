"""The fixtures of the REPL's tests, over the REPL of this machine."""

from tests.repl.conftest import repl, start

__all__ = ["repl", "start"]
