"""`--build`: a virtual environment for each list of pip layers, made once and kept by content."""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from .jail import Bind, Jail, JailPlan, isolation
from .process import ByteLog, Process
from .settings import Settings
from .state import Workspace

_PIP = re.compile(r"^(python3?\s+-m\s+)?pip3?\s+install\b|^\S*/uv\s+pip\s+install\b")


class BuildError(Exception):
    """A layer could not be installed; the message says which and how it ended."""


def is_pip(command: str) -> bool:
    """Whether a RUN command installs Python packages."""
    return bool(_PIP.match(command))


def as_pip(command: str) -> str:
    """The command as pip takes it: uv's options that pip does not know are left out or translated."""
    if "uv" not in command.split(None, 1)[0]:
        return re.sub(r"^(python3?\s+-m\s+)?pip3?", "python -m pip", command)
    rest = re.sub(r"^\S*/uv\s+pip\s+install", "", command)
    rest = rest.replace("--python $(command -v python)", "").replace("--compile-bytecode", "")
    rest = rest.replace("--prerelease allow", "--pre").replace("--requirements ", "-r ")
    return "python -m pip install" + rest


class Builder:
    def __init__(self, settings: Settings, workspace: Workspace) -> None:
        self._settings = settings
        self._workspace = workspace
        self._locks: dict[Path, asyncio.Lock] = {}

    async def build(
        self, commands: Sequence[str], layers: Sequence[Path], env: Mapping[str, str], out: ByteLog
    ) -> Path:
        """The interpreter of an environment in which `commands` were run. Raises BuildError."""
        key = hashlib.sha256("\n".join((sys.version, self._settings.python, *commands)).encode())
        for layer in layers:
            for path in sorted(p for p in layer.rglob("*") if p.is_file()):
                key.update(path.read_bytes())
        venv = self._settings.cache_dir / "venvs" / key.hexdigest()[:24]
        venv.parent.mkdir(parents=True, exist_ok=True)
        async with self._locks.setdefault(venv, asyncio.Lock()), _file_lock(venv.with_suffix(".lock")):
            if not (venv / ".complete").is_file():
                shutil.rmtree(venv, ignore_errors=True)
                await self._run([self._settings.python, "-m", "venv", str(venv)], venv, layers, {}, out)
                for command in commands:
                    out.feed(f"=> RUN {command}\n".encode())
                    await self._run(["sh", "-c", as_pip(command)], venv, layers, env, out)
                (venv / ".complete").touch()
        return venv / "bin" / "python"

    async def _run(
        self, argv: list[str], venv: Path, layers: Sequence[Path], env: Mapping[str, str], out: ByteLog
    ) -> None:
        wheels = self._settings.cache_dir / "pip"
        for needed in (venv, wheels):
            os.makedirs(needed, exist_ok=True)
        plan = JailPlan()
        if isolation():
            plan = JailPlan(layers=layers, binds=[Bind(venv, str(venv)), Bind(wheels, str(wheels))])
        jail = await Jail.start(plan, self._workspace.fresh("build"))
        try:
            path = f"{venv}/bin:{os.environ.get('PATH', '')}"
            inherited = {
                k: v for k, v in os.environ.items() if k.upper().startswith(("PIP_", "HTTP", "NO_PROXY", "SSL_"))
            }
            ours = {"PATH": path, "HOME": str(Path.home()), "PIP_CACHE_DIR": str(wheels)}
            full = {**inherited, **env, **ours, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
            process = await Process.start(jail, argv, full, "/")
            try:
                process.close_stdin()
                async for _, data in process.stdout.read(0):
                    out.feed(data)
                status = await process.wait()
                await process.drained()
                out.feed(process.stderr.data)
            finally:
                await process.close()
        finally:
            await jail.close()
        if status != 0:
            tail = process.stderr.data.decode(errors="replace")[-2000:]
            raise BuildError(f"{' '.join(argv[-1:])} ended with {status}:\n{tail}")


@contextlib.asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    """One build of an environment at a time, also among several doubles."""
    with path.open("w") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


def client_layer(workspace: Workspace) -> Path:
    """A directory with the client and what it needs, to come last on `sys.path` of a built Image's container.

    It stands in for the client that Modal mounts into every Function: the Image's own packages have precedence.
    """
    layer = workspace.directory("client")
    site = layer / "__modal" / "deps"
    if site.is_dir():
        return layer
    site.mkdir(parents=True)
    todo, seen = ["modal"], set[str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            dist = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for top in {file.parts[0] for file in dist.files or () if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(dist.locate_file(top)))
            if source.is_dir() and not (site / top).exists():
                shutil.copytree(source, site / top, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy(source, site / top)
        for line in dist.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(re.sub(r"[-_.]+", "-", requirement.name).lower())
    pkg = layer / "pkg"
    pkg.mkdir()
    (pkg / "sitecustomize.py").write_text("import sys\n\nsys.path.append('/__modal/deps')\n")
    return layer
