"""The environment a program is put together from: this process's own, and the file that --env-file names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from rlm.errors import InputError

KEY_VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
SETTINGS_CHARS = 1 << 20


def environment_with(env_file: Path | None) -> Mapping[str, str]:
    """The environment, with what the file sets on top.

    Raises: InputError when the file cannot be read.
    """
    if env_file is None:
        return os.environ
    from dotenv import dotenv_values

    found = {
        name: value for name, value in dotenv_values(stream=StringIO(small_text(env_file))).items() if value is not None
    }
    return {**os.environ, **found}


def small_text(path: Path) -> str:
    """What a file of settings holds, up to SETTINGS_CHARS.

    Raises: InputError when it cannot be read, or is longer.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(SETTINGS_CHARS + 1)
    except (OSError, ValueError) as exc:
        raise InputError(f"cannot read {path}: {getattr(exc, 'strerror', None) or exc}") from exc
    if len(text) > SETTINGS_CHARS:
        raise InputError(f"cannot read {path}: it is longer than {SETTINGS_CHARS:,} characters")
    return text


def has_provider(environment: Mapping[str, str]) -> bool:
    """Whether the environment names a key or a base URL."""
    return any(environment.get(name, "").strip() for name in KEY_VARIABLES)
