"""Other RLM packages, doing the same work in a venv of their own.

Each has a script in `peer_scripts/` that runs by itself in that venv: one JSON object in on stdin, one out on
stdout. It goes the way the package's own runs go; what is done is told by us, so that both do the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm.errors import InputError, RLMError

SCRIPTS = Path(__file__).with_name("peer_scripts")
TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Peer:
    """A package in a venv, and our script for it."""

    name: str
    python: Path
    script: Path

    def run(self, benchmark: str, **asked: object) -> dict[str, Any]:
        """What the package's script found.

        Raises: RLMError when it fails: figures without a peer that was asked for would say too little.
        """
        done = _run(self.python, self.script, {"benchmark": benchmark, **asked})
        if done.returncode != 0:
            words = (done.stderr.strip().splitlines() or ["no word on stderr"])[-1]
            raise RLMError(f"{self.name} failed at {benchmark}: {words}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def find_peer(python: Path | None) -> Peer | None:
    """The package that `python` has and we have a script for; None where no peer is asked for.

    Raises: InputError when there is none.
    """
    if python is None:
        return None
    scripts = sorted(SCRIPTS.glob("*.py"))
    for script in scripts:
        try:
            done = _run(python, script, {"benchmark": "version"})
        except OSError as exc:
            raise InputError(f"cannot run {python}: {exc.strerror}") from exc
        if done.returncode == 0:
            return Peer(json.loads(done.stdout)["peer"], python, script)
    known = ", ".join(script.stem for script in scripts)
    raise InputError(f"{python} has no package to compare with: install one of {known} from PyPI there")


def _run(python: Path, script: Path, asked: dict[str, object]) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="rlm-peer-") as folder:
        return subprocess.run(
            [python.absolute(), "-I", script],  # -I: its `rlm` is another than ours, which may be in this folder
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            timeout=TIMEOUT_S,
            check=False,
        )
