"""A wire-level stand-in for Modal's control plane, for tests and for development without an account.

See the README in this directory. `python -m tests.modal_double -- COMMAND` runs a command against it; `ModalDouble`
is the same for tests.
"""

from .double import ContainerInfo, ModalDouble, RunFailed, SandboxInfo
from .faults import Faults
from .settings import PROXY_KEY, PROXY_SECRET, Settings

__all__ = [
    "PROXY_KEY",
    "PROXY_SECRET",
    "ContainerInfo",
    "Faults",
    "ModalDouble",
    "RunFailed",
    "SandboxInfo",
    "Settings",
]
