"""Modal's part of `rlm doctor`: the token, and the Secrets that the App wants."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlm.doctor import Finding
from rlm.terminal import in_one_line

ANSWER_TIMEOUT_S = 8.0  # the client itself goes on trying for far longer
MESSAGE_CHARS = 300
PROVIDER_SECRET = "openai-secret"  # noqa: S105  # its name
API_SECRET = "rlm-api-token"  # noqa: S105
NEW_TOKEN = "modal token new"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Missing:
    """What it means that a Secret is not there."""

    state: Literal["warn", "fail"]
    found: str
    remedy: str


SECRETS = {
    PROVIDER_SECRET: Missing(
        "fail",
        "there is none, so runs on Modal have no key",
        f"modal secret create {PROVIDER_SECRET} OPENAI_API_KEY=..., or --env-file",
    ),
    API_SECRET: Missing(
        "warn",
        "there is none, so the HTTPS API deploys closed",
        f"modal secret create {API_SECRET} RLM_API_TOKEN=...",
    ),
}


def on_modal() -> Iterator[Finding]:
    """What there is on Modal. Without a token nobody is asked."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it says what it makes of a broken file
            from modal.config import config
    except Exception:  # noqa: BLE001  # its words may hold what is in the file
        path = os.environ.get("MODAL_CONFIG_PATH") or "~/.modal.toml"
        yield Finding("Modal", "fail", f"its settings in {path} cannot be read", f"mend the file, or: {NEW_TOKEN}")
        return
    if not any(config.get(name) for name in ("token_id", "oauth_refresh_token")):
        yield Finding("Modal", "warn", "there is no token: nothing can run there", NEW_TOKEN)
        return
    yield from asyncio.run(secrets())


async def secrets() -> list[Finding]:
    """The Secrets that there are, by one request for each; where one fails for another reason, that alone."""
    import modal

    missing: list[Finding] = []
    there: list[Finding] = []
    for name, without in SECRETS.items():
        what = f"Modal's Secret {name}"
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await modal.Secret.from_name(name).hydrate.aio()
        except modal.exception.NotFoundError:
            missing.append(Finding(what, without.state, without.found, without.remedy))
        except modal.exception.AuthError as exc:
            return [Finding("Modal", "fail", f"it does not accept the token: {words(exc)}", NEW_TOKEN)]
        except (modal.exception.Error, TimeoutError) as exc:
            told = f"it cannot be reached: {words(exc)}"
            return [Finding("Modal", "fail", told, "see the network here, and https://status.modal.com")]
        else:
            there.append(Finding(what, "ok", "it is there"))
    return [Finding("Modal", "ok", "it accepts the token"), *there, *missing]


def words(exc: Exception) -> str:
    """What an error says, in one line of a length that can be read."""
    return in_one_line(str(exc))[:MESSAGE_CHARS] or "no answer"
