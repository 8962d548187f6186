"""The work of `rlm bench cells`, done by the PyPI package `recursive-llm`. Runs by itself in a venv that has it.

Its cells have no batch of sub-LLM calls, so there is no fan-out to measure.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import statistics
import sys
import time
from typing import Any


def cells(asked: dict[str, Any]) -> dict[str, Any]:
    """Run cells of `pass` (one with nothing in it never gets to its REPL, a process as ours but not isolated)."""
    names: dict[str, Any] = {"context": "nothing"}
    times_s = []
    started = time.perf_counter()
    with importlib.import_module("rlm.repl").REPLExecutor() as repl:
        repl.execute("pass", names)
        start_s = time.perf_counter() - started
        for _ in range(asked["cells"]):
            started = time.perf_counter()
            repl.execute("pass", names)
            times_s.append(time.perf_counter() - started)
    percentiles = statistics.quantiles(times_s, n=100, method="inclusive")
    note = "the peer's cells run in a process that is not isolated"
    return {"start_s": start_s, "p50_s": statistics.median(times_s), "p99_s": percentiles[98], "note": note}


def main() -> None:
    """One JSON object in, one out."""
    asked = json.load(sys.stdin)
    found: dict[str, Any] = {}
    if asked["benchmark"] == "version":
        found = {"peer": f"recursive-llm {importlib.metadata.version('recursive-llm')}"}
    elif asked["benchmark"] == "cells":
        found = cells(asked)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
