import pytest

from rlm.errors import KeyRefusedError, ProviderError, SubLLMError, UnknownModelError, WorkerError
from rlm.usage import TokenUsage
from rlm.workers.base import ProviderFailure, WorkerBusy
from rlm.workers.retry import RetryPolicy, Tries

POLICY = RetryPolicy(attempts=3, max_wait_s=100)


def failure(kind, retry_after_s=None, words="the provider's words", tokens=0):
    return ProviderFailure(kind, words, retry_after_s, TokenUsage(output_tokens=tokens))


def test_passing_faults_are_tried_again_up_to_the_bound():
    tries = Tries(POLICY, 7)
    assert tries.next(failure("transient"), 0).attempts == 1
    assert tries.next(WorkerError("gone"), 1).attempts == 2
    with pytest.raises(SubLLMError, match="failed 3 times, the last: the provider's words") as raised:
        tries.next(failure("transient"), 2)
    assert (raised.value.index, raised.value.attempts) == (7, 3)


def test_the_wait_grows_from_half_a_second_to_its_cap_with_full_jitter():
    policy = RetryPolicy()
    for failures, bound in [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 20), (5000, 20)]:
        waits = [policy.delay_s(failures) for _ in range(400)]
        assert 0 <= min(waits) < bound / 4
        assert bound * 3 / 4 < max(waits) <= bound


def test_a_dead_worker_costs_no_wait():
    assert Tries(POLICY, 0).next(WorkerError("gone"), 0).delay_s == 0


def test_rate_limits_are_bounded_by_time_and_not_by_attempts():
    tries = Tries(POLICY, 0)
    for second in range(0, 90, 2):
        assert tries.next(failure("rate_limited", 1.5), second).delay_s == 1.5
    with pytest.raises(SubLLMError, match=r"held back for 99 s.*the provider's words"):
        tries.next(failure("rate_limited", 1.5), 99)


def test_a_wait_longer_than_we_would_ever_wait_fails_at_once():
    with pytest.raises(SubLLMError, match="asked to wait 3600 s"):
        Tries(POLICY, 0).next(failure("rate_limited", 3600), 0)


def test_a_busy_worker_is_no_attempt():
    tries = Tries(POLICY, 0)
    for second in range(50):
        assert tries.next(WorkerBusy(0.5), second).attempts == 0


@pytest.mark.parametrize("kind", ["context_window", "refused"])
def test_what_the_provider_will_never_answer_fails_in_its_words(kind):
    with pytest.raises(SubLLMError, match=r"^the provider's words$"):
        Tries(POLICY, 0).next(failure(kind), 0)


@pytest.mark.parametrize("asked_s", [0, 0.001, None])
@pytest.mark.parametrize("kind", ["rate_limited", "transient"])
def test_a_provider_that_asks_for_no_wait_gets_the_usual_one(kind, asked_s):
    policy = RetryPolicy(base_s=1, attempts=1000)
    waits = [Tries(policy, 0).next(failure(kind, asked_s), 0).delay_s for _ in range(200)]
    assert sum(waits) / len(waits) > 0.3


def test_a_passing_fault_is_waited_for_as_long_as_asked_but_no_longer_than_the_cap():
    policy = RetryPolicy(cap_s=20)
    assert Tries(policy, 0).next(failure("transient", 7), 0).delay_s == 7
    assert Tries(policy, 0).next(failure("transient", 10**9), 0).delay_s == 20


@pytest.mark.parametrize(
    ("kind", "words", "says"),
    [
        ("empty", "", "the answer was empty (3 times)"),
        ("declined", "I cannot.", "the model declined to answer: I cannot. (3 times)"),
    ],
)
def test_an_answer_without_words_is_asked_for_again_and_what_was_paid_is_counted(kind, words, says):
    tries = Tries(RetryPolicy(wordless=3), 7)
    for _ in range(2):
        assert tries.next(failure(kind, words=words, tokens=5), 0).delay_s >= 0
    with pytest.raises(SubLLMError) as raised:
        tries.next(failure(kind, words=words, tokens=5), 0)
    assert str(raised.value) == says
    assert (raised.value.attempts, raised.value.usage) == (3, TokenUsage(output_tokens=15))


def test_answers_without_words_count_among_the_attempts():
    tries = Tries(RetryPolicy(wordless=3, attempts=2), 0)
    tries.next(failure("transient"), 0)
    with pytest.raises(SubLLMError, match=r"^the answer was empty$"):
        tries.next(failure("empty", words=""), 0)


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("key_refused", KeyRefusedError, "http://llm/v1 does not accept the API key: the provider's words (see OPENAI"),
        ("unknown_model", UnknownModelError, "http://llm/v1 has no model the provider's words (see --model"),
        ("out_of_quota", ProviderError, "the account's quota at http://llm/v1 is used up: the provider's words"),
        ("wrong_url", ProviderError, "http://llm/v1 has no chat completions where OPENAI_BASE_URL points to: the pro"),
    ],
)
def test_what_no_other_prompt_would_escape_has_its_own_error_and_remedy(kind, error, says):
    tries = Tries(POLICY, 0, who="http://llm/v1")
    tries.next(failure("empty", words="", tokens=5), 0)
    with pytest.raises(error) as raised:
        tries.next(failure(kind), 0)
    assert str(raised.value).startswith(says)
    assert raised.value.usage == TokenUsage(output_tokens=5)
