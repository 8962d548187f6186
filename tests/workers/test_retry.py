import pytest

from rlm.errors import KeyRefusedError, SubLLMError, UnknownModelError, WorkerError
from rlm.workers.base import ProviderFailure, WorkerBusy
from rlm.workers.retry import RetryPolicy, Tries

POLICY = RetryPolicy(attempts=3, max_wait_s=100)


def failure(kind, retry_after_s=None):
    return ProviderFailure(kind, "the provider's words", retry_after_s)


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


@pytest.mark.parametrize(("kind", "error"), [("key_refused", KeyRefusedError), ("unknown_model", UnknownModelError)])
def test_what_no_other_prompt_would_escape_has_its_own_error(kind, error):
    with pytest.raises(error, match="the provider's words"):
        Tries(POLICY, 0).next(failure(kind), 0)
