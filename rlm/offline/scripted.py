"""The scripted model as the provider of a run: what it is called, that it costs nothing, a server for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from rlm.config import Provider, RunConfig
from rlm.usage import Price, PriceList

SCRIPTED_ROOT, SCRIPTED_SUB = "scripted-root", "scripted-sub"
FREE = PriceList(dict.fromkeys((SCRIPTED_ROOT, SCRIPTED_SUB), Price(input=0.0, output=0.0, cached_input=0.0)))
SCRIPTED = Provider(api_key="none", scripted=True)


def scripted_config(config: RunConfig) -> RunConfig:
    """The configuration, but with the scripted models."""
    return replace(config, model=SCRIPTED_ROOT, recursive_model=SCRIPTED_SUB)


@contextlib.contextmanager
def serve_scripted() -> Iterator[Provider]:
    """The scripted model, served until the block ends.

    Raises: OSError when no port can be had.
    """
    from rlm.offline.server import serve_offline

    with serve_offline() as server:
        yield replace(SCRIPTED, base_url=server.base_url)
