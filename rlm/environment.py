"""The environment a program is put together from: this process's own, and the file that --env-file names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rlm.errors import InputError

KEY_VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL")


def environment_with(env_file: Path | None) -> Mapping[str, str]:
    """The environment, with what the file sets on top.

    Raises: InputError when the file cannot be read.
    """
    if env_file is None:
        return os.environ
    from dotenv import dotenv_values

    try:
        with env_file.open(encoding="utf-8") as file:
            found = {name: value for name, value in dotenv_values(stream=file).items() if value is not None}
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"cannot read {env_file}: {getattr(exc, 'strerror', None) or exc}") from exc
    return {**os.environ, **found}


def has_provider(env_file: Path | None) -> bool:
    """Whether the environment or the file names a key or a base URL."""
    environment = environment_with(env_file)
    return any(environment.get(name, "").strip() for name in KEY_VARIABLES)
