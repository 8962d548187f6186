"""The offline model in a process of its own, so that it takes no time of ours."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from rlm.errors import RLMError

STATS_TIMEOUT_S = 10
SHOWN = ("sub_requests", "distinct_sub_prompts", "prompts_answered_more_than_once", "peak_in_flight")


@contextlib.contextmanager
def offline_llm(latency_s: float) -> Iterator[str]:
    """Run `rlm offline-llm`; its base URL.

    Raises: RLMError when it does not start.
    """
    command = [sys.executable, "-m", "rlm", "offline-llm", "--port", "0", "--latency-s", str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            name, _, base_url = server.stdout.readline().strip().partition("=")
            if name != "OPENAI_BASE_URL":
                raise RLMError("the offline model did not start: try `rlm offline-llm`")
            yield base_url
        finally:
            server.terminate()


def checked_counts(base_url: str, prompts: int) -> dict[str, Any]:
    """What the server counted.

    Raises: RLMError unless it was asked that many prompts, each once, and answered them.
    """
    with contextlib.closing(
        http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=STATS_TIMEOUT_S)
    ) as connection:
        connection.request("GET", "/stats")
        stats = json.loads(connection.getresponse().read())
    if {stats["sub_requests"], stats["distinct_sub_prompts"], stats["answered"]} != {prompts}:
        raise RLMError(f"the model was to be asked {prompts} prompts once each, but counted {stats}")
    return {name: stats[name] for name in SHOWN}
