"""A root LM's seat as a folder of files: a person, or any model, answers requests by writing replies.

Each request of a root LM becomes `0001.request.md`: the messages that are new since the conversation's last reply.
The answer is what somebody writes to `0001.reply.md`. Requests of sub-LLMs come the same way where they are asked
for. So prompts can be judged from the seat they are written for, with the whole program behind it as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rlm.errors import InputError

POLL_S = 0.1
SETTLED_POLLS = 3  # a reply counts once its file has stayed as it is for so long: an editor may write it in pieces


class Relay:
    """Hands requests to whoever watches the folder.

    Raises: InputError when the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InputError(f"cannot use the relay folder {folder}: {exc.strerror or exc}") from exc
        self._folder = folder
        self._count = len(list(folder.glob("*.request.md")))

    async def ask(self, messages: Sequence[tuple[str, str]]) -> str:
        """Write the request, wait for its reply. `messages` are (role, text); may be cancelled."""
        self._count += 1
        name = f"{self._count:04}"
        partial = self._folder / f"{name}.request.partial"
        partial.write_text(as_markdown(messages), "utf-8", errors="replace")
        partial.rename(self._folder / f"{name}.request.md")
        return await self._reply(self._folder / f"{name}.reply.md")

    async def _reply(self, path: Path) -> str:
        seen, polls = "", 0
        while not seen.strip() or polls < SETTLED_POLLS:
            await asyncio.sleep(POLL_S)
            text = path.read_text("utf-8", errors="replace") if path.exists() else ""  # noqa: ASYNC240  # tiny, loopback
            seen, polls = (seen, polls + 1) if text == seen else (text, 0)
        return seen


def as_markdown(messages: Sequence[tuple[str, str]]) -> str:
    """The messages after the last reply, each under its role."""
    last_reply = max((at for at, (role, _) in enumerate(messages) if role == "assistant"), default=-1)
    return "".join(f"## {role}\n\n{text}\n\n" for role, text in messages[last_reply + 1 :])
