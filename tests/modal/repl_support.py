"""REPLs in Sandboxes on the double of Modal."""

from __future__ import annotations

import uuid
from pathlib import Path

import modal

import sandbox_image
from rlm.modal.repl import ModalReplLauncher
from tests.modal_double import ModalDouble
from tests.modal_double.double import SandboxInfo

IMAGE = modal.Image.debian_slim(python_version="3.11").add_local_dir(
    Path(sandbox_image.__file__).parent, "/root/sandbox_image", ignore=["**/__pycache__"]
)


class OnModal:
    """An App of its own, whose Sandboxes are REPLs."""

    def __init__(self, double: ModalDouble) -> None:
        self.double = double
        self.app = modal.App.lookup(f"rlm-{uuid.uuid4().hex[:8]}", create_if_missing=True)

    def launcher(self, **options) -> ModalReplLauncher:
        return ModalReplLauncher(self.app, IMAGE, **{"run_id": uuid.uuid4().hex[:12], **options})

    def sandboxes(self) -> list[SandboxInfo]:
        return [info for info in self.double.sandboxes() if info.app_id == self.app.app_id]
