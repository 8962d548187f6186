"""The REPL: a persistent Python process that runs a root LM's cells. Standard library only.

The host speaks to it in frames: 16 bytes of nonce, 4 bytes of length (big endian), then that much JSON. They
travel over what were stdin and stdout at the start; both are moved to private descriptors before the first
cell runs, and descriptors 1 and 2 become pipes of the cell, so that nothing a cell prints, from Python, from C
or from a subprocess, is ever taken for a frame. The first 16 bytes on stdin are the nonce.

host → REPL   hello {limits}             load {kind, files}           cell {number, code, timeout_s}
              answer {id, outcomes}
REPL → host   ready {pid}                loaded {description}         load_failed {message}
              call {id, kind, items, model}                           done {number, output}

Everything that comes from here is written by hostile code, as far as the host is concerned.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import faulthandler
import functools
import json
import linecache
import os
import queue
import resource
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TextIO

# Added, not put first, and only now: an Image holds this folder and nothing of the project besides.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

from sandbox_image.channel import Channel
from sandbox_image.clock import CELL_NAME, CellClock
from sandbox_image.context import describe, load_context
from sandbox_image.output import Output
from sandbox_image.report import cap, format_error, show

MAX_ANSWER_CHARS = 10_000_000
BROKEN_STATUS = 70
VALUE_NAME = "__value__"
CO_COROUTINE = 0x80  # inspect's: its import would cost every start 10 ms


class SubLLMError(RuntimeError):
    """A sub-LLM call failed for good. The message holds the provider's words."""


class BudgetError(SubLLMError):
    """The call was not made: it would cost more than what is left of the run's budget."""


class Finished(BaseException):
    """Raised by FINAL to end the cell at once. Never leaves the driver."""


class Repl:
    """Cells, their names, and the builtins they may call."""

    def __init__(self, channel: Channel, max_output_chars: int) -> None:
        self._channel = channel
        self._max_output_chars = max_output_chars
        self.output = Output(max_output_chars)
        self._pid = os.getpid()
        self._clock = CellClock()
        self._calls: dict[int, queue.SimpleQueue[list[dict[str, Any]]]] = {}
        self._next_call = 0
        self._calls_lock = threading.Lock()
        self._final: str | None = None
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        self._names = module.__dict__
        self._names["answer"] = {"content": "", "ready": False}
        self._given: dict[str, object] = {
            "context": None,
            "llm_query": self._llm_query,
            "parallel_llm_query": self._parallel_llm_query,
            "llm_query_batched": self._parallel_llm_query,
            "rlm_query": self._rlm_query,
            "rlm_query_batched": self._rlm_query_batched,
            "FINAL": self._final_value,
            "FINAL_VAR": self._final_var,
            "SHOW_VARS": self._show_vars,
            "budget": self._budget,
            "SubLLMError": SubLLMError,
            "BudgetError": BudgetError,
        }
        builtins.input = self._input

    def load(self, kind: str, files: list[list[str]]) -> None:
        """Read the context; the host hears what it is."""
        try:
            context = load_context(kind, files)
        except (OSError, ValueError, SystemError, RecursionError, MemoryError) as exc:
            self._channel.send("load_failed", message=str(exc) or type(exc).__name__)
            return
        self._given["context"] = context
        self._channel.send("loaded", description=describe(context))

    def deliver(self, call: int, outcomes: list[dict[str, Any]]) -> None:
        """The host's answer to a call, handed to the thread that waits for it."""
        if inbox := self._calls.get(call):
            inbox.put(outcomes)

    # What a cell may call.

    def _call(self, kind: str, items: list[Any], model: str | None = None) -> list[dict[str, Any]]:
        inbox: queue.SimpleQueue[list[dict[str, Any]]] = queue.SimpleQueue()
        with self._calls_lock:
            self._next_call += 1
            call = self._next_call
            self._calls[call] = inbox
        try:
            with self._clock.paused():
                self._channel.send("call", id=call, kind=kind, items=items, model=model)
                return inbox.get()
        finally:
            del self._calls[call]

    def _llm_query(self, prompt: str, model: str | None = None) -> str:
        """Ask a sub-LLM. It sees this prompt and nothing else."""
        return self._parallel_llm_query([prompt], model)[0]  # type: ignore[return-value]

    def _parallel_llm_query(
        self,
        prompts: Iterable[str],
        model: str | None = None,
        return_exceptions: bool = False,  # noqa: FBT001, FBT002
    ) -> list[str | SubLLMError]:
        """Ask sub-LLMs in parallel: one answer for each prompt, in the order of the prompts."""
        texts = texts_of(prompts)
        return results(self._call("llm", texts, model), keep_errors=return_exceptions) if texts else []

    def _rlm_query(self, prompt: str, context: object = None) -> str:
        """Let a child run, with a REPL of its own, answer the prompt over the context."""
        return self._rlm_query_batched([prompt], [context])[0]  # type: ignore[return-value]

    def _rlm_query_batched(
        self,
        prompts: Iterable[str],
        contexts: Iterable[object] | None = None,
        return_exceptions: bool = False,  # noqa: FBT001, FBT002
    ) -> list[str | SubLLMError]:
        """Child runs in parallel: one answer for each prompt, in order."""
        texts = texts_of(prompts)
        given = [None] * len(texts) if contexts is None else list(contexts)
        if len(given) != len(texts):
            raise ValueError(f"{len(texts)} prompts but {len(given)} contexts")
        items = [child_question(text, context) for text, context in zip(texts, given, strict=True)]
        return results(self._call("rlm", items), keep_errors=return_exceptions) if items else []

    def _final_value(self, value: object = "") -> None:
        """Give the final answer. Ends the run."""
        text = str(value)
        if len(text) > MAX_ANSWER_CHARS:
            raise ValueError(f"an answer may have {MAX_ANSWER_CHARS:,} characters; this one has {len(text):,}")
        if self._final is None:
            self._final = text
        if threading.current_thread() is threading.main_thread():
            raise Finished

    def _final_var(self, name: object) -> None:
        """Give the value of a variable as the final answer. Ends the run."""
        if not isinstance(name, str):
            return self._final_value(name)
        if name.strip() not in self._names:
            known = ", ".join(sorted(self._own_names())) or "none yet"
            raise NameError(f"FINAL_VAR: there is no variable {cap(name, 80)!r}. Variables: {known}")
        return self._final_value(self._names[name.strip()])

    def _show_vars(self) -> str:
        """The variables the cells have made, with their types and sizes."""
        lines = []
        for name, value in sorted(self._own_names().items()):
            size = f", {len(value):,} long" if isinstance(value, str | bytes | list | tuple | dict | set) else ""
            lines.append(f"{name}: {type(value).__name__}{size}")
        return "\n".join(lines) or "no variables yet"

    def _budget(self) -> dict[str, Any]:
        """What is left of the run's budget; None is without limit."""
        (left,) = self._call("budget", [])
        return left

    def _input(self, _prompt: object = "") -> str:
        raise EOFError("input() cannot be answered here: nobody is at the keyboard")

    def _own_names(self) -> dict[str, object]:
        hidden = {*self._given, "answer", "_"}
        return {n: v for n, v in self._names.items() if n not in hidden and not (n[:2] == n[-2:] == "__")}

    # Running a cell.

    def run(self, number: int, code: str, timeout_s: float) -> None:
        """Run one cell as a notebook would; the host hears all about it."""
        self._names.update(self._given)
        self.output.begin(number)
        value, raised = "", None
        self._clock.start(timeout_s)
        try:
            try:
                value = self._show(self._execute(f"{CELL_NAME}{number}>", code))
            finally:
                self._read_answer()
                self.output.flush()
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
        output = {
            **streams,
            "value": value,
            "error": error,
            "final": None if final is None else {"text": final},
            "late": late,
        }
        self._channel.send("done", number=number, output=output)

    def _execute(self, filename: str, code: str) -> object:
        linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
        tree = BareFinalVar().visit(ast.parse(code, filename))
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

    def _read_answer(self) -> None:
        """The answer protocol: a dict whose "ready" is true holds the final answer in "content"."""
        answer = self._names.get("answer")
        if not isinstance(answer, dict):
            self._names["answer"] = {"content": "", "ready": False}
        elif answer.get("ready"):
            with contextlib.suppress(Finished):
                self._final_value(answer.get("content", ""))


class BareFinalVar(ast.NodeTransformer):
    """FINAL_VAR(x) means the value of x, as FINAL_VAR("x") does: root LMs write both."""

    def visit_Call(self, node: ast.Call) -> ast.AST:  # the name ast asks for
        """Give a bare name's value."""
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name(id="FINAL_VAR") as function, args=[ast.Name()], keywords=[]):
                function.id = "FINAL"
        return node


def texts_of(prompts: Iterable[object]) -> list[str]:
    """A batch's prompts as texts."""
    if isinstance(prompts, str):
        raise TypeError("a batch is a list of prompts; for one prompt there are llm_query and rlm_query")
    return [str(prompt) for prompt in prompts]


def child_question(prompt: str, context: object) -> dict[str, Any]:
    """A question for a child run: its context as text, or else as JSON, which the host need not read."""
    is_json = not isinstance(context, str)
    return {"prompt": prompt, "context": json.dumps(context) if is_json else context, "is_json": is_json}


def results(outcomes: list[dict[str, Any]], *, keep_errors: bool) -> list[str | SubLLMError]:
    """The answers of a batch; the first failure is raised, unless errors are to be kept."""
    found: list[str | SubLLMError] = []
    for outcome in outcomes:
        if "error" in outcome:
            error = (BudgetError if outcome.get("budget") else SubLLMError)(outcome["error"])
            if not keep_errors:
                raise error
            found.append(error)
        else:
            found.append(outcome["text"])
    return found


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


def limit_resources(limits: dict[str, int]) -> None:
    """Bound what this process and its children may take, as far as the system lets us."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        bound = value + (tasks_of_others() if kind == resource.RLIMIT_NPROC else 0)
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def tasks_of_others() -> int:
    """RLIMIT_NPROC counts all that a user runs, so what runs already is to be added, but in a namespace of ours."""
    with open("/proc/self/uid_map") as id_map, open("/proc/loadavg") as load:  # noqa: PTH123
        is_our_namespace = id_map.read().split()[2] != "4294967295"
        return 0 if is_our_namespace else int(load.read().split()[3].partition("/")[2])


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
    repl = Repl(channel, hello["max_output_chars"])
    work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def receive_for_ever() -> None:
        while True:
            frame = channel.receive()
            match frame.pop("op"):
                case "answer":
                    repl.deliver(frame["id"], frame["outcomes"])
                case "load":
                    work.put(functools.partial(repl.load, **frame))
                case "cell":
                    work.put(functools.partial(repl.run, **frame))

    def work_for_ever() -> None:
        channel.send("ready", pid=os.getpid())
        while True:
            work.get()()

    for name, loop in (("rlm-frames", receive_for_ever), ("rlm-output", repl.output.drain_for_ever)):
        threading.Thread(target=or_die, args=(loop, channel.stderr), daemon=True, name=name).start()
    or_die(work_for_ever, channel.stderr)


if __name__ == "__main__":
    main()
