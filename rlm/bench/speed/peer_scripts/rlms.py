"""The work of `rlm bench`, done by the PyPI package `rlms`. Runs by itself in a venv that has it.

Client, handler and REPL are put together as `rlm.RLM.completion` of that package does it, with its defaults.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any


def local_repl(**options: object) -> Any:  # noqa: ANN401  # the package's own
    """The package's REPL: this very process."""
    return importlib.import_module("rlm.environments").get_environment("local", options)


def fanout(asked: dict[str, Any]) -> dict[str, Any]:
    """Run cells; the seconds and the output of each."""
    get_client = importlib.import_module("rlm.clients").get_client
    client = get_client("openai", {"model_name": "gpt-5-nano", "base_url": asked["base_url"], "api_key": "none"})
    rounds = []
    with (
        importlib.import_module("rlm.core.lm_handler").LMHandler(client) as handler,
        local_repl(lm_handler_address=handler.address, context_payload="nothing", depth=1) as repl,
    ):
        for code in asked["cells"]:
            started = time.perf_counter()
            result = repl.execute_code(code)
            rounds.append({"seconds": time.perf_counter() - started, "stdout": result.stdout})
    return {"rounds": rounds}


def cells(asked: dict[str, Any]) -> dict[str, Any]:
    """Run cells with nothing in them."""
    started = time.perf_counter()
    repl = local_repl(context_payload="nothing")
    start_s = time.perf_counter() - started
    times_s = []
    with repl:
        for _ in range(asked["cells"]):
            started = time.perf_counter()
            repl.execute_code("")
            times_s.append(time.perf_counter() - started)
    percentiles = statistics.quantiles(times_s, n=100, method="inclusive")
    note = "the peer's cells run in its own process: there is no way there and back"
    return {"start_s": start_s, "p50_s": statistics.median(times_s), "p99_s": percentiles[98], "note": note}


def context(asked: dict[str, Any]) -> dict[str, Any]:
    """Read a file into the context (the package takes values, not files) and run the first cell."""
    started = time.perf_counter()
    with (
        open(asked["path"], encoding="utf-8") as file,  # noqa: PTH123
        local_repl(context_payload=file.read()) as repl,
    ):
        result = repl.execute_code("print(len(context))")
        first_cell_s = time.perf_counter() - started
    peak = Path("/proc/self/status").read_text("ascii").split("VmHWM:")[1]
    return {"first_cell_s": first_cell_s, "stdout": result.stdout, "peak_kib": int(peak.split()[0])}


def main() -> None:
    """One JSON object in, one out."""
    asked = json.load(sys.stdin)
    if asked["benchmark"] == "version":
        found: dict[str, Any] = {"peer": f"rlms {importlib.metadata.version('rlms')}"}
    else:
        found = {"fanout": fanout, "cells": cells, "context": context}[asked["benchmark"]](asked)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
