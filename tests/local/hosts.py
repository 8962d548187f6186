"""Hosts that are processes of their own, to be given an environment, or to be killed."""

import subprocess
import sys
import textwrap

SESSION = textwrap.dedent("""
    import asyncio, sys, tempfile
    from pathlib import Path
    from rlm.context import context_from_value
    from rlm.local.repl import LocalReplLauncher
    from rlm.config import ReplLimits
    from rlm.repl.session import ReplSession

    async def answer(call): return [{"text": p} for p in call.items]
    async def main():
        with tempfile.TemporaryDirectory() as folder:
            context = context_from_value("text", Path(folder))
            async with ReplSession(LocalReplLauncher(TOOLS), context, ReplLimits(), answer) as repl:
                for cell in CELLS:
                    result = await repl.run(cell)
                    print(result.stdout, result.value, result.error or "", sep="", flush=True)
    asyncio.run(main())
""")


def session_code(tools, *cells) -> str:
    """A program that runs the cells in a REPL kept apart by one of the tools, and prints what they give."""
    return f"TOOLS, CELLS = {list(tools)!r}, {list(map(textwrap.dedent, cells))!r}\n{SESSION}"


def run_host(code: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=15, **options)
