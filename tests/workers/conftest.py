"""An App of its own for each test on the double of Modal, which must hold no Sandbox at the end."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import modal
import pytest

from tests.modal_double import ModalDouble
from tests.modal_double.fixtures import modal_double, modal_faults, needs_isolation
from tests.workers.modal_support import OnModal

__all__ = ["modal_double", "modal_faults", "needs_isolation"]


@pytest.fixture
def on_modal(modal_double: ModalDouble, needs_isolation: None) -> Iterator[OnModal]:
    it = OnModal(modal_double, modal.App.lookup(f"rlm-{uuid.uuid4().hex[:8]}", create_if_missing=True))
    yield it
    it.end()


@pytest.fixture
def store(modal_double: ModalDouble) -> modal.Dict:
    return modal.Dict.from_name(f"rlm-{uuid.uuid4().hex[:8]}", create_if_missing=True)
