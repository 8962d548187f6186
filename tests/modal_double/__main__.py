"""The command line: `python -m tests.modal_double [options] -- COMMAND...`, or `… serve`."""

import argparse
import ctypes
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from .double import ModalDouble
from .settings import Settings

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: that of the command, or 0 when `serve` was told to stop."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="modal_double: %(message)s")
    settings = Settings(secrets=dict(map(_secret, args.secret)), build=args.build, egress=args.egress, port=args.port)
    logging.getLogger("grpclib").setLevel(logging.WARNING)
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        with ModalDouble(settings) as double:
            if args.command == ["serve"]:
                return _serve(double)
            return _run(double, args.command[1:] if args.command[:1] == ["--"] else args.command)
    finally:
        _end_descendants()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.modal_double", description=__doc__)
    parser.add_argument("--build", action="store_true", help="install the pip layers of the Images")
    parser.add_argument("--egress", action="store_true", help="let Sandboxes reach their allowed domains by HTTPS")
    parser.add_argument("--port", type=int, default=0, help="port of the control plane; a free one by default")
    parser.add_argument("--verbose", action="store_true", help="log what the double does")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=KEY[,KEY...]",
        help="make a Secret of variables of this environment; KEY:VALUE gives the value here",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="`-- COMMAND...`, or `serve`")
    return parser


def _secret(text: str) -> tuple[str, dict[str, str]]:
    name, _, keys = text.partition("=")
    env = {}
    for key in filter(None, keys.split(",")):
        key, colon, value = key.partition(":")
        if colon:
            env[key] = value
        elif key in os.environ:
            env[key] = os.environ[key]
    return name, env


def _run(double: ModalDouble, command: Sequence[str]) -> int:
    """The command, with signals passed on; Ctrl-C reaches it by itself."""
    if not command:
        raise SystemExit("no command given")
    env = {**os.environ, **double.env}
    child = subprocess.Popen(command, env=env, preexec_fn=_die_with_parent)

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    old[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        status = child.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        if child.poll() is None:
            child.kill()
            child.wait()
    return status if status >= 0 else 128 - status


def _die_with_parent() -> None:
    """In the child: if the double is killed outright, so is its command."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _serve(double: ModalDouble) -> int:
    """Print what to set, and stay until told to stop."""
    for name, value in double.env.items():
        if name == "PATH":
            continue
        print(f"export {name}={shlex.quote(value)}")
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


def _end_descendants() -> None:
    """Kill what the command left behind. As a subreaper this process is the parent of every orphan."""
    while pids := _children():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


if __name__ == "__main__":
    sys.exit(main())
