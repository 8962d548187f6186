"""The fixtures of the REPL's tests, over the REPL of this machine, under each tool that keeps it apart here."""

import pytest

from rlm.local.isolation import TOOLS, choose
from rlm.local.repl import LocalReplLauncher
from tests.repl.conftest import repl, start

__all__ = ["launcher", "repl", "start", "tool"]


@pytest.fixture(params=TOOLS, scope="module")
def tool(request):
    """Each tool that works on this machine."""
    choice = choose((request.param,))
    if choice.tool is None:
        pytest.skip(f"not on this machine: {choice.reasons[0]}")
    return choice.tool


@pytest.fixture
def launcher(tool):
    return LocalReplLauncher([tool])
