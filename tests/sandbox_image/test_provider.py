import asyncio

import pytest

from sandbox_image.failures import ProviderFailedError
from sandbox_image.provider import ProviderClient
from tests.hostile import serve_attacks


def test_a_stream_that_falls_silent_after_its_first_words_is_given_up():
    async def main(base_url):
        async with ProviderClient(api_key="k", base_url=base_url, streams=True, silence_s=0.2) as client:
            await client.ask("m", [{"role": "user", "content": "attack: a stream that falls silent"}], timeout_s=60)

    with (
        serve_attacks() as hostile,
        pytest.raises(ProviderFailedError, match=r"fell silent for 0\.2 s in its answer") as raised,
    ):
        asyncio.run(main(hostile.base_url))
    assert raised.value.kind == "transient"


def test_silence_before_the_first_word_is_thinking():
    async def main(base_url):
        async with ProviderClient(api_key="k", base_url=base_url, streams=True, silence_s=0.2) as client:
            await client.ask("m", [{"role": "user", "content": "attack: a stream of comments"}], timeout_s=1)

    with serve_attacks() as hostile, pytest.raises(ProviderFailedError, match=r"no answer within 1 s"):
        asyncio.run(main(hostile.base_url))
