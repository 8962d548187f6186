"""The way from this package to the App: the one place that imports `modal_app`, and only when it is asked for."""

from __future__ import annotations

from types import ModuleType


def modal_app() -> ModuleType:
    """The module of the App. It talks to Modal when it is imported first: not from within an event loop.

    Raises: InputError for an --env-file that cannot be read.
    """
    import modal_app

    return modal_app
