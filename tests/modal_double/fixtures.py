"""Pytest fixtures, to be imported by a conftest or named in its `pytest_plugins`."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from .double import ModalDouble
from .faults import Faults
from .jail import isolation

_shared: list[ModalDouble] = []


@pytest.fixture(scope="session")
def modal_double() -> Iterator[ModalDouble]:
    """One double for the whole session, with the environment of this process pointing at it.

    One, however many conftests import this fixture: the client remembers the first server it has met.
    """
    with ExitStack() as stack:
        if not _shared:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            _shared.append(stack.enter_context(ModalDouble()))
            stack.callback(_shared.clear)
            for name, value in _shared[0].env.items():
                patch.setenv(name, value)
        yield _shared[0]


@pytest.fixture
def modal_faults(modal_double: ModalDouble) -> Iterator[Faults]:
    """The faults of the session's double, taken back after the test."""
    yield modal_double.faults
    modal_double.faults.clear()


@pytest.fixture(scope="session")
def needs_isolation() -> None:
    """Skip where the machine allows no namespaces and overlays: there are no Sandboxes then."""
    if not isolation():
        pytest.skip("namespaces or overlays are not allowed here")
