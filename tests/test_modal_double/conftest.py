import os
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from tests.modal_double import ModalDouble
from tests.modal_double.fixtures import modal_double, modal_faults, needs_isolation

__all__ = ["modal_double", "modal_faults", "needs_isolation"]

APPS = Path(__file__).parent / "apps"


@pytest.fixture(scope="session")
def apps() -> Path:
    return APPS


@pytest.fixture(scope="session")
def deployed(modal_double: ModalDouble) -> ModalDouble:
    """The double with the apps of this directory deployed, but for those that are only run."""
    modal_double.set_secret("some-secret", {"SECRET_WORD": "xyzzy"})
    for name in ("work.py", "webapp.py"):
        done = modal_double.cli("deploy", str(APPS / name))
        assert done.returncode == 0, done.stdout + done.stderr
    return modal_double


@pytest.fixture(scope="session")
def box_app(modal_double: ModalDouble, needs_isolation: None) -> modal.App:
    return modal.App.lookup("boxes", create_if_missing=True)


@pytest.fixture
def own_double() -> Iterator[ModalDouble]:
    """A double for one test, for clients in subprocesses."""
    with ModalDouble() as double:
        yield double


def children() -> set[int]:
    """Processes below this one."""
    found, todo = set[int](), [os.getpid()]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            try:
                new = {int(pid) for pid in task.read_text().split()} - found
            except FileNotFoundError:
                continue
            found |= new
            todo.extend(new)
    return found
