"""What the root LM is told between its replies."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence

from rlm.events import CellCost, CellOutput
from rlm.usage import PriceList

NOT_RUN = "The {count} later cell(s) of your reply were not run."

_UNKNOWN_NAME = re.compile(r"^NameError: name '(\w+)' is not defined", re.MULTILINE)
_SHOUTED = ("FINAL", "FINAL_VAR", "SHOW_VARS")


def cell_report(number: int, result: CellOutput, cost: CellCost) -> str:
    """What cell `number` of the run did, what it took, and which variables it made."""
    parts = [f"Output of cell {number}:"]
    for late in result.late:
        text = (late.stdout + late.stderr).rstrip()
        parts.append(f"[printed by what cell {late.cell} of this REPL left running]\n{text}")
    if result.stdout:
        parts.append(result.stdout.rstrip("\n"))
    if result.stderr:
        parts.append(f"[stderr]\n{result.stderr.rstrip()}")
    if result.value:
        parts.append(f"[value] {result.value}" if result.stdout else result.value)
    if result.error:
        parts.append(result.error)
        parts += _hints(result.error)
    if len(parts) == 1:
        parts.append("(nothing was printed; use print to see values)")
    return "\n".join([*parts, cost_line(number, cost, result.new_names)])


def cost_line(number: int, cost: CellCost, new_names: Sequence[str] = ()) -> str:
    """What a cell took, and the variables it made, in a line."""
    parts = [f"{cost.seconds:.1f} s"]
    if cost.calls:
        parts += [f"{cost.calls:,} call{'s' * (cost.calls != 1)}", f"{cost.tokens:,} tokens"]
        parts += [] if cost.usd is None else [f"${cost.usd:.4f}"]
    made = f"; new: {', '.join(new_names)}" if new_names else ""
    return f"[cell {number}: {', '.join(parts)}{made}]"


def _hints(error: str) -> list[str]:
    """How to put right a name that is not known, where that can be told."""
    found = _UNKNOWN_NAME.search(error)
    name = found[1] if found else ""
    if name in sys.stdlib_module_names:
        return [f"(`{name}` is a module: write `import {name}` first)"]
    if name.upper() in _SHOUTED:
        return [f"(write `{name.upper()}`, in capitals, not `{name}`)"]
    if name in ("python", "repl"):
        return [f"(`{name}` belongs right behind the three backquotes, and nowhere else)"]
    return []


def death_report(number: int, how: str) -> str:
    """A cell took the REPL with it."""
    return (
        f"Cell {number} ended the whole REPL: {how}. A fresh REPL has started: `context` is loaded again, all other "
        "variables are gone. Avoid what that cell did."
    )


def budget_line(left: Mapping[str, float | None], iterations_left: int) -> str:
    """What is left, in a sentence; without limit is not mentioned."""
    units = {
        "calls": "{:,.0f} sub-LLM calls",
        "tokens": "{:,.0f} tokens",
        "usd": "${:.2f}",
        "seconds": "{:.0f} seconds",
    }
    parts = [f"{iterations_left} replies"]
    parts += [units[kind].format(amount) for kind, amount in left.items() if amount is not None]
    return f"[Left: {', '.join(parts)}.]"


def models_line(root: str, sub: str, prices: PriceList) -> str:
    """Who is asked, and what that costs, where it is known."""
    return f"The root LM is {_with_price(root, prices)}, the sub-LLM {_with_price(sub, prices)}."


def _with_price(model: str, prices: PriceList) -> str:
    price = prices.by_model.get(model)
    return model if price is None else f"{model} (${price.input:g} in / ${price.output:g} out per million tokens)"


def shorten(contents: Sequence[str], keep_chars: int) -> list[str]:
    """Old messages cut to their head and tail, `keep_chars` in all for each."""
    half = keep_chars // 2
    return [text if len(text) <= keep_chars else f"{text[:half]}\n[... cut ...]\n{text[-half:]}" for text in contents]
