"""How a REPL is kept apart from this machine: the tools that can, which of them works here, and what to tell."""

from __future__ import annotations

import functools
import heapq
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from rlm.local import visible
from rlm.local.confined.plan import MEMORY, Plan
from rlm.repl.frames import NONCE_BYTES
from rlm.scratch import Scratch
from sandbox_image import driver_path

Tool = Literal["bwrap", "unshare", "landlock"]
TOOLS: tuple[Tool, ...] = ("bwrap", "unshare", "landlock")  # the best first
PYTHON = (sys.executable, "-I", "-X", "utf8")
START = str(Path(__file__).with_name("confined") / "start.py")
HOME = f"{MEMORY}/home"  # not MEMORY itself: an interpreter below /tmp is shown in there
SHM = "/dev/shm"  # noqa: S108
CONTEXT = "/context"
COPIES = f"{CONTEXT}/copies"
SMALL_BYTES = 1 << 20
MAX_MOUNTED = 200
ENVIRONMENT_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
PROBE_TIMEOUT_S = 10
PROBE_BYTES = 1 << 20
REASON_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Confined:
    """How a driver is started and ended. Used as `with`, around the start: the `inherited` descriptors are open.

    `home` is its working folder; `placed` has the paths that files have for it; `in_memory` are those folders that
    cells can write to and that are in memory. With `waits` the process that is started has one child, and ends
    with it, and with it all that it has started.
    """

    command: tuple[str, ...]
    home: str
    placed: dict[Path, str]
    inherited: tuple[int, ...] = ()
    in_memory: tuple[str, ...] = ()
    waits: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self.inherited:
            os.close(number)


@dataclass(frozen=True, slots=True)
class Choice:
    """The tool that works here, if any, and why the better ones do not."""

    tool: Tool | None
    reasons: tuple[str, ...] = ()

    def notice(self) -> str | None:
        """What the user is to be told of how well model-written code is kept apart, if anything."""
        if self.tool in ("bwrap", "unshare"):
            return None
        why = "; ".join(self.reasons)
        if self.tool == "landlock":
            return (
                f"Landlock alone keeps model-written code apart ({why}): it reads no file of yours and has no "
                "network, but it can find out whether a file exists"
            )
        return (
            f"this machine cannot isolate the REPL ({why}): model-written code runs as you, with your files, your "
            "processes and your network"
        )


@functools.cache
def choose(tools: tuple[Tool, ...]) -> Choice:
    """The first of the tools that works here, tried with a driver that has nothing to do."""
    reasons: list[str] = []
    for tool in tools:
        reason = _trial(tool)
        if reason is None:
            return Choice(tool, tuple(reasons))
        reasons.append(f"{tool}: {reason}")
    return Choice(None, tuple(reasons))


def environment() -> dict[str, str]:
    """Of our variables, those that a REPL gets."""
    return {name: os.environ[name] for name in ENVIRONMENT_KEPT if name in os.environ}


def _trial(tool: Tool) -> str | None:
    """Why the tool does not work here; None when it does."""
    scratch = Scratch("repl")
    try:
        with confine(tool, scratch.path, (), PROBE_BYTES) as it:
            trial = subprocess.run(
                it.command,
                input=bytes(NONCE_BYTES),  # and no hello: a driver whose host is gone leaves with status 0
                capture_output=True,
                timeout=PROBE_TIMEOUT_S,
                check=False,
                cwd=scratch.path,
                env=environment(),
                pass_fds=it.inherited,
            )
    except FileNotFoundError:
        return "not installed"
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    finally:
        scratch.remove()
    if trial.returncode == 0:
        return None
    last = trial.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return last.removeprefix(f"{tool}: ")[:REASON_CHARS] or f"exit status {trial.returncode}"


def confine(tool: Tool | None, folder: Path, files: Sequence[Path], home_bytes: int) -> Confined:
    """A driver to be kept apart by `tool`, with `files` readable. What it has in memory is `home_bytes` at the most.

    `folder` is an empty folder, of this driver alone.

    Raises: OSError when a file cannot be shown.
    """
    home = folder / "home"
    home.mkdir()
    placed = {path: str(path) for path in files}
    if tool is None:
        return Confined(command=(*PYTHON, str(driver_path())), home=str(home), placed=placed)
    shown = [(path, path) for path in visible.shown()]
    if tool == "landlock":
        shown += [(path, path) for path in placed.values()]
    else:
        placed, sources = _stage(files, folder / "copies")
        shown += sources
    root = folder / "root"
    root.mkdir()
    plan = Plan(
        tool=tool,
        driver=str(driver_path()),
        host_pid=os.getpid(),
        root=str(root),
        home=str(home) if tool == "landlock" else HOME,
        home_bytes=home_bytes,
        shown=shown,
        links=visible.symlinks(),
    )
    number = plan.open()
    prefix = _bubblewrap(plan) if tool == "bwrap" else ()
    return Confined(
        command=(*prefix, *PYTHON, START, str(number)),
        home=plan.home,
        placed=placed,
        inherited=(number,),
        in_memory=() if tool == "landlock" else (MEMORY, SHM),
        waits=True,
    )


def _stage(files: Sequence[Path], copies: Path) -> tuple[dict[Path, str], list[tuple[str, str]]]:
    """The paths that files get in the REPL, and what to show for that.

    Large files are shown themselves, each for itself: what stands beside them is not. Small ones are copied, and
    larger ones when there are very many: a mount for each takes longer.
    """
    copies.mkdir()
    placed: dict[Path, str] = {}
    sources = [(str(copies), COPIES)]
    sizes = {path: path.stat().st_size for path in files}
    large = {path for path in heapq.nlargest(MAX_MOUNTED, sizes, key=sizes.__getitem__) if sizes[path] > SMALL_BYTES}
    for number, path in enumerate(sizes):
        if path not in large:
            shutil.copyfile(path, copies / str(number))
            placed[path] = f"{COPIES}/{number}"
        else:
            placed[path] = f"{CONTEXT}/{number}"
            sources.append((str(path), placed[path]))
    return placed, sources


def _bubblewrap(plan: Plan) -> tuple[str, ...]:
    """The same file system and namespaces that `confined.namespaces` makes, made by bwrap."""
    size = ("--size", str(plan.home_bytes))
    arguments = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        for right in ("CAP_SYS_ADMIN", "CAP_SETPCAP"):  # to protect the devices with, and then to drop all rights
            arguments += ["--cap-add", right]
    arguments += [*size, "--tmpfs", MEMORY, "--dir", plan.home, "--dev", "/dev", *size, "--tmpfs", SHM]
    arguments += ["--proc", "/proc", "--dir", "/run", "--dir", "/var"]
    for path, target in plan.links:
        arguments += ["--symlink", target, path]
    for source, path in plan.shown:
        arguments += ["--ro-bind", source, path]
    for path in ("/proc", "/dev", "/"):
        arguments += ["--remount-ro", path]
    return ("bwrap", *arguments, "--chdir", plan.home, "--")
