"""The root LM behind a provider: streams underneath, tries again, counts what was paid, names what is wrong."""

import asyncio

import pytest

from rlm.config import Provider
from rlm.errors import ContextWindowError, EmptyReplyError, KeyRefusedError, ProviderError, UnknownModelError
from rlm.models import ROOT_POLICY, OpenAIChatModel, shown
from rlm.offline.server import Fault, OfflineSettings, WrongAnswer, serve_offline
from rlm.workers.retry import RetryPolicy
from tests.hostile import serve_attacks

FAST = RetryPolicy(attempts=5, base_s=0.02, cap_s=0.1)
MESSAGES = [{"role": "system", "content": "You are the root."}, {"role": "user", "content": "word " * 20}]


def replies(count=1, *, timeout_s=20, policy=FAST, path="", **settings):
    """What a model says to so many requests, and the server's counts."""
    with serve_offline(
        OfflineSettings(script=("the reply, and quite a long one, of more than one piece",), **settings)
    ) as on:
        provider = Provider(api_key="sk-0123456789abcdef", base_url=on.base_url + path)

        async def main():
            async with OpenAIChatModel(provider, "m", timeout_s=timeout_s, policy=policy) as model:
                return [await model.complete(MESSAGES) for _ in range(count)]

        return asyncio.run(main()), on.stats()


def test_a_streamed_reply_is_whole_and_counted():
    ((reply,), stats) = replies()
    assert reply.text == "the reply, and quite a long one, of more than one piece"
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.cut) == (30, 14, False)
    assert stats.requests == 1


def test_a_provider_that_cannot_stream_is_asked_for_a_stream_once():
    (two, stats) = replies(2, streams=False)
    assert [reply.usage.output_tokens for reply in two] == [14, 14]
    assert (stats.requests, stats.errors) == (3, {400: 1})


def test_a_provider_whose_streams_tell_no_usage_is_asked_for_a_stream_once():
    with serve_attacks() as hostile:

        async def main():
            async with OpenAIChatModel(Provider(api_key="k", base_url=hostile.base_url), "m", policy=FAST) as model:
                for name in ("a stream after its end", "the key in an answer"):
                    await model.complete([{"role": "user", "content": f"attack: {name}"}])

        asyncio.run(main())
        assert hostile.asked_for_a_stream == {"a stream after its end": 1, "the key in an answer": 0}


def test_a_reply_that_reached_the_output_limit_is_cut():
    ((reply,), _) = replies(faults=(Fault(answer=WrongAnswer.CUT),))
    assert reply.cut
    assert reply.text == "the reply, and quite a long"


@pytest.mark.parametrize("how", [WrongAnswer.EMPTY, WrongAnswer.DECLINED, WrongAnswer.FILTERED])
def test_a_reply_without_words_is_asked_for_again_and_paid_for(how):
    ((reply,), stats) = replies(faults=(Fault(answer=how, times=2),))
    assert reply.text.startswith("the reply")
    assert reply.usage.input_tokens == 3 * 30
    assert stats.requests == 3


def test_a_model_that_never_says_a_word_is_an_error_that_says_what_was_paid():
    with pytest.raises(
        EmptyReplyError, match=r"'m' at http://.*gave no answer: the answer was empty \(3 times\)"
    ) as raised:
        replies(faults=(Fault(answer=WrongAnswer.EMPTY, times=9),))
    assert raised.value.usage.input_tokens == 90


def test_a_reply_has_its_time_and_no_more():
    with pytest.raises(ProviderError, match=r"failed 2 times, the last: no answer within 0\.1 s"):
        replies(timeout_s=0.1, policy=RetryPolicy(attempts=2, base_s=0.01), faults=(Fault(hang_s=60, times=9),))


@pytest.mark.parametrize("asked", ["-5", "0", "nan", "inf", "Thu, 01 Jan 1970 00:00:30 GMT"])
def test_a_rate_limit_without_a_wait_makes_no_storm(asked):
    """At once would be some hundred times in the second that there is."""
    policy = RetryPolicy(base_s=0.2, cap_s=0.2, max_wait_s=1)
    faults = (Fault(status=429, times=30, headers={"Retry-After": asked}),)
    with pytest.raises(ProviderError, match="held back for"):
        replies(policy=policy, faults=faults)


def test_a_wait_without_an_end_is_not_waited_for():
    with pytest.raises(ProviderError, match="asked to wait 86400 s more"):
        replies(faults=(Fault(status=429, headers={"Retry-After": "1000000000"}),), policy=ROOT_POLICY)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        (
            {"api_key": "other"},
            KeyRefusedError,
            "does not accept the API key: Incorrect API key provided. (see OPENAI_API_KEY)",
        ),
        ({"models": ("other",)}, UnknownModelError, "has no model 'm': The model `m` does not exist. (see --model"),
        ({"window_tokens": 3}, ContextWindowError, "the messages are too long for 'm'"),
        ({"path": "/v2"}, ProviderError, "has no chat completions where OPENAI_BASE_URL points to: There is no POST"),
        ({"faults": (Fault(status=402),)}, ProviderError, "the account's quota at http"),
        ({"faults": (Fault(status=400),)}, ProviderError, "gave no answer: A fault that was asked for."),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(settings, error, says):
    with pytest.raises(error) as raised:
        replies(**settings)
    assert says in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("key", "says"),
    [("sk-ключ-0123456789", "characters that no HTTP header can carry"), ("", "there is none")],
)
def test_a_key_that_cannot_be_sent_is_refused_unsaid(key, says):
    async def main():
        async with OpenAIChatModel(Provider(api_key=key, base_url="http://127.0.0.1:1/v1"), "m") as model:
            await model.complete(MESSAGES)

    with pytest.raises(KeyRefusedError, match=says) as raised:
        asyncio.run(main())
    assert "ключ" not in str(raised.value)


def test_a_setting_of_the_sdk_that_no_header_carries_is_an_error_in_plain_words(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "Gesellschaft für Lärm")
    with pytest.raises(ProviderError, match="a setting of the SDK has what no HTTP header can carry"):
        replies()


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        (None, "OpenAI"),
        ("http://llm:1/v1", "http://llm:1/v1"),
        ("https://me:secret@llm/v1?key=secret#s", "https://llm/v1"),
    ],
)
def test_a_provider_is_named_without_what_is_secret(base_url, says):
    assert shown(base_url) == says
