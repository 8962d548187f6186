"""The prompts of the root LM: Markdown files with $names, each of which must be given."""

from __future__ import annotations

from importlib.resources import files
from string import Template


def prompt(name: str, /, **values: object) -> str:
    """The prompt in `name`.md with its $names filled in.

    Raises: KeyError when a name is missing.
    """
    return Template(files(__package__).joinpath(f"{name}.md").read_text("utf-8")).substitute(values).strip()
