"""Run by a test: starts a worker, says so, and waits to be killed."""

import asyncio
import sys

from rlm.local.workers import LocalLauncher


async def main() -> None:
    entry = await LocalLauncher({"OPENAI_API_KEY": "k"}).start()
    print(entry.url, flush=True)  # noqa: T201
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
