"""The REPL: a persistent Python process that runs a root LM's cells. Standard library only.

Frames travel over what were stdin and stdout at the start; both are moved to private descriptors before the first
cell runs, and descriptors 1 and 2 become pipes of the cell, so that nothing a cell prints, from Python, from C
or from a subprocess, is ever taken for a frame. The first 16 bytes on stdin are the nonce. A frame of the host is
the nonce, 4 bytes of length, that much JSON; one of the REPL is the nonce, 4 bytes of the length of its head, 4 bytes
of the number n of its texts, n times 4 bytes of their lengths, the head in JSON, the texts. Numbers are big endian.

host → REPL   hello {limits, max_output_chars, max_prompt_chars}      load {kind, files}
              cell {number, code, timeout_s, max_s}                   final {number, text, timeout_s, max_s}
              answer {id, outcomes} or {id, failed}
REPL → host   ready {pid}                loaded {description, type, libraries}       load_failed {message}
              call {kind, id, cell, model} + prompts (of child runs: prompt, context, "text" or "json")
              done {number, has_error, has_final, is_json, late, new_names} + stdout, stderr, value, error, answer,
              and stdout and stderr of each cell in late

Everything that comes from here is written by hostile code, as far as the host is concerned.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import faulthandler
import functools
import linecache
import os
import queue
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import NoReturn, TextIO

# Added, not put first, and only now: an Image holds this folder and nothing of the project besides.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

from sandbox_image.calls import Calls, public, what_a_cell_may_ask
from sandbox_image.channel import Channel
from sandbox_image.clock import CELL_NAME, CellClock
from sandbox_image.context import load_context
from sandbox_image.describe import describe
from sandbox_image.finals import (
    Final,
    Finished,
    as_final,
    is_draft,
    is_untouched,
    parse_cell,
    read_final,
)
from sandbox_image.limits import limit_resources
from sandbox_image.output import Output
from sandbox_image.report import cap, format_error, show
from sandbox_image.variables import new_names, show_vars

MAX_MESSAGE_CHARS = 2_000
BROKEN_STATUS = 70
LIBRARIES = "numpy", "pandas", "scipy", "sklearn", "polars", "regex", "dateutil", "yaml", "bs4", "lxml"
VALUE_NAME = "__value__"
CO_COROUTINE = 0x80  # inspect's: its import would cost every start 10 ms


class Repl:
    """Cells, their names, and what they may call."""

    def __init__(self, channel: Channel, max_output_chars: int, max_prompt_chars: int | None) -> None:
        self._channel = channel
        self._max_output_chars = max_output_chars
        self.output = Output(max_output_chars)
        self._pid = os.getpid()
        self._clock = CellClock()
        self.calls = Calls(channel, self._clock, self.output.cell_of_thread)
        self._final: Final | None = None
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        self._names = module.__dict__
        self._names["answer"] = {"content": "", "ready": False}
        ways_to_answer = self._ways_to_answer()
        self._given: dict[str, object] = {
            "context": None,
            **what_a_cell_may_ask(self.calls, max_prompt_chars),
            **ways_to_answer,
            "SHOW_VARS": self._show_vars(),
        }
        self._aliases = {  # builtins: a cell's own variable of that name comes first
            "final": ways_to_answer["FINAL"],
            "Final": ways_to_answer["FINAL"],
            "final_var": ways_to_answer["FINAL_VAR"],
        }
        builtins.input = no_input

    def load(self, kind: str, files: list[list[str]]) -> None:
        """Read the context; the host hears what it is."""
        try:
            context, json_chars = load_context(kind, files)
            description = describe(context, json_chars)
        except (OSError, ValueError, SystemError, RecursionError, MemoryError) as exc:
            self._channel.send("load_failed", message=cap(str(exc) or type(exc).__name__, MAX_MESSAGE_CHARS))
            return
        self._given["context"] = context
        libraries = [name for name in LIBRARIES if PathFinder.find_spec(name)]
        self._channel.send("loaded", description=description, type=type(context).__name__, libraries=libraries)

    # The ways to answer.

    def _ways_to_answer(self) -> dict[str, Callable[..., None]]:
        def FINAL(value: object = "") -> None:  # noqa: N802
            """Give the answer to the question and end the run.

            A text is the answer as it is; a list, a dict, a number or the like becomes JSON.
            """
            self._finish(value)

        def FINAL_VAR(name: object) -> None:  # noqa: N802
            """Give what the variable of that name holds as the answer, and end the run."""
            if not isinstance(name, str):
                self._finish(name)
                return
            if name.strip() not in self._names:
                known = cap(", ".join(sorted(self._variables())), MAX_MESSAGE_CHARS) or "none yet"
                raise NameError(f"FINAL_VAR: there is no variable {cap(name, 80)!r}. Variables: {known}")
            self._finish(self._names[name.strip()])

        return {"FINAL": public(FINAL), "FINAL_VAR": public(FINAL_VAR)}

    def _finish(self, value: object) -> None:
        if is_draft(value):
            value = value["content"]  # type: ignore[index]
        final = as_final(value)
        if self._final is None:
            self._final = final
        if threading.current_thread() is threading.main_thread():
            raise Finished

    def _read_answer(self) -> None:
        """The answer protocol: a dict whose "ready" is true holds the final answer in "content"."""
        answer = self._names.setdefault("answer", {"content": "", "ready": False})
        if isinstance(answer, dict) and answer.get("ready"):
            with contextlib.suppress(Finished):
                self._finish(answer.get("content", ""))

    def _evaluate_final(self, filename: str, text: str) -> object:
        """`FINAL(text)` as a reply's prose has it: evaluated if it is code, else the words are the answer."""
        variables = self._variables()
        if self._names.get("context") is self._given["context"]:
            variables["context"] = self._given["context"]
        read = read_final(text, variables, known=self._names)
        if isinstance(read, str):
            return self._execute(filename, read)
        self._final = self._final or read
        raise Finished

    # The variables.

    def _show_vars(self) -> Callable[[], str]:
        def SHOW_VARS() -> str:  # noqa: N802
            """The variables the cells have made, a line each: type, size, and a look at what they hold."""
            return show_vars(self._variables())

        return public(SHOW_VARS)

    def _variables(self) -> dict[str, object]:
        """What cells have made."""
        hidden = {*self._given, "_"}
        if is_untouched(self._names.get("answer")):
            hidden.add("answer")
        return {
            name: value
            for name, value in self._names.copy().items()
            if type(name) is str and name not in hidden and not (name[:2] == name[-2:] == "__")
        }

    # Running a cell.

    def run(self, number: int, code: str, timeout_s: float, max_s: float) -> None:
        """Run one cell as a notebook would; the host hears all about it."""
        self._run(number, functools.partial(self._execute, code=code), timeout_s, max_s)

    def final(self, number: int, text: str, timeout_s: float, max_s: float) -> None:
        """Take the answer that a reply's prose gives in `FINAL(text)`, as if a cell had given it."""
        self._run(number, functools.partial(self._evaluate_final, text=text), timeout_s, max_s)

    def _run(self, number: int, work: Callable[[str], object], timeout_s: float, max_s: float) -> None:
        before = self._names.keys() | self._given.keys()
        self._names.update(self._given)
        builtins.__dict__.update(self._aliases)
        self.output.begin(number)
        value, raised, fresh = "", None, []
        self._clock.start(number, timeout_s, max_s)
        try:
            try:
                value = self._show(work(f"{CELL_NAME}{number}>"))
            finally:
                self._read_answer()
                self.output.flush()
                fresh = new_names(before, self._variables())
        except Finished:
            pass
        except BaseException as exc:  # noqa: BLE001  # whatever a cell raises is data
            raised = exc
        error = None if raised is None else format_error(raised)
        self._clock.stop()
        if os.getpid() != self._pid:
            leave_fork(raised)
        final, self._final = self._final, None
        streams, late = self.output.current.take(), self.output.late()
        texts = [streams["stdout"], streams["stderr"], value, error or "", final.text if final else ""]
        texts += [entry[stream] for _, entry in late for stream in ("stdout", "stderr")]
        self._channel.send(
            "done",
            texts,
            number=number,
            has_error=raised is not None,
            has_final=final is not None,
            is_json=final is not None and final.is_json,
            late=[cell for cell, _ in late],
            new_names=fresh,
        )

    def _execute(self, filename: str, code: str) -> object:
        linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
        tree = parse_cell(code, filename, self._names)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            name = ast.copy_location(ast.Name(VALUE_NAME, ast.Store()), last)
            tree.body[-1] = ast.copy_location(ast.Assign([name], last.value), last)
        compiled = compile(tree, filename, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        running = eval(compiled, self._names)  # noqa: S307  # running code is what this process is for
        if compiled.co_flags & CO_COROUTINE:
            import asyncio  # 40 ms that few cells need

            asyncio.run(running)
        return self._names.pop(VALUE_NAME, None)

    def _show(self, value: object) -> str:
        if value is None:
            return ""
        self._names["_"] = value
        return show(value, self._max_output_chars)


def no_input(_prompt: object = "") -> str:
    """What `input` is in a cell."""
    raise EOFError("input() cannot be answered here: nobody is at the keyboard")


def leave_fork(raised: BaseException | None) -> NoReturn:
    """A forked child has come to the end of the cell: it must not go on as a second REPL."""
    status = 0 if raised is None else 1
    if isinstance(raised, SystemExit):
        status = raised.code if isinstance(raised.code, int) else int(raised.code is not None)
    elif raised is not None:
        sys.stderr.write(format_error(raised) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def or_die(work: Callable[[], None], true_stderr: TextIO) -> None:
    """Do what the REPL cannot live without. When it fails, the host hears why."""
    try:
        work()
    except BaseException:  # noqa: BLE001  # the process ends
        traceback.print_exc(file=true_stderr)
    finally:
        os._exit(BROKEN_STATUS)


def main() -> None:
    """Serve the host until it is gone."""
    channel = Channel()
    faulthandler.enable(channel.stderr)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    hello = channel.receive()
    limit_resources(hello["limits"])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file too large is an OSError in the cell
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    repl = Repl(channel, hello["max_output_chars"], hello["max_prompt_chars"])
    work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def receive_for_ever() -> None:
        while True:
            frame = channel.receive()
            match frame.pop("op"):
                case "answer":
                    repl.calls.deliver(frame)
                case "load":
                    work.put(functools.partial(repl.load, **frame))
                case "cell":
                    work.put(functools.partial(repl.run, **frame))
                case "final":
                    work.put(functools.partial(repl.final, **frame))

    def work_for_ever() -> None:
        channel.send("ready", pid=os.getpid())
        while True:
            work.get()()

    for name, loop in (("rlm-frames", receive_for_ever), ("rlm-output", repl.output.drain_for_ever)):
        threading.Thread(target=or_die, args=(loop, channel.stderr), daemon=True, name=name).start()
    or_die(work_for_ever, channel.stderr)


if __name__ == "__main__":
    main()
