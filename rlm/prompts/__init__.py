"""What the root LM is told: sets of prompts, each a folder of Markdown files with $names that must be given.

`default` is for capable models, `small` for models of a few billion parameters; a folder of one's own is a set, too.
A set holds the files that differ from those of `default`. Where a run is to work in parallel, `NAME.parallel.md` is
taken before `NAME.md`.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from rlm.errors import InputError

DEFAULT = "default"


class Prompts:
    """One set of prompts.

    Raises: InputError when there is no such set, or it holds a file that no prompt is read from.
    """

    def __init__(self, name: str = DEFAULT, *, parallel: bool = False) -> None:
        self._folders = (_folder(name), _folder(DEFAULT))
        self._endings = (".parallel.md", ".md") if parallel else (".md",)

    def __call__(self, name: str, /, **values: object) -> str:
        """The prompt of that name with its $names filled in.

        Raises: InputError when the file names a value that is not given.
        """
        path = next(
            path for folder in self._folders for end in self._endings if (path := folder.joinpath(name + end)).is_file()
        )
        try:
            return Template(path.read_text("utf-8")).substitute(values).strip()
        except (KeyError, ValueError, OSError) as exc:
            raise InputError(
                f"cannot use the prompt {path}: {_why(exc)}; it may name {', '.join(sorted(values)) or 'no value'}"
            ) from exc


@functools.cache
def _folder(name: str) -> Traversable:
    shipped = files(__package__)
    named = shipped.joinpath(name) if name.isidentifier() else Path(name)
    if not named.is_dir():
        sets = ", ".join(sorted(each.name for each in shipped.iterdir() if each.joinpath("system.md").is_file()))
        raise InputError(f"there is no set of prompts {name!r}: name a folder, or one of {sets}")
    known = _names(shipped.joinpath(DEFAULT))
    if strange := sorted(_names(named) - known):
        raise InputError(f"{name} holds {strange[0]}.md, which no prompt is read from: use {', '.join(sorted(known))}")
    return named


def _names(folder: Traversable) -> set[str]:
    return {file.name[:-3].removesuffix(".parallel") for file in folder.iterdir() if file.name.endswith(".md")}


def _why(exc: Exception) -> str:
    if isinstance(exc, KeyError):
        return f"${exc.args[0]} is not a value it is given"
    return getattr(exc, "strerror", None) or str(exc)
