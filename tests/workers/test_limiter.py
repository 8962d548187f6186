from rlm.workers.limiter import RECOVERY_ROUNDS, AdaptiveLimit
from tests.workers.registry_contract import Clock


def test_a_burst_of_refusals_halves_the_limit_once():
    clock = Clock()
    limit = AdaptiveLimit(64, clock=clock)
    sent_at = clock.now
    clock.now += 1
    for _ in range(50):
        limit.refused(sent_at=sent_at, in_flight=64)
    assert limit.limit == 32


def test_refusals_of_calls_sent_after_the_cut_halve_again_and_never_below_one():
    clock = Clock()
    limit = AdaptiveLimit(8, clock=clock)
    seen = []
    for _ in range(6):
        clock.now += 1
        limit.refused(sent_at=clock.now, in_flight=limit.limit)
        seen.append(limit.limit)
    assert seen == [4, 2, 1, 1, 1, 1]


def test_the_cut_starts_from_what_was_in_flight():
    limit = AdaptiveLimit(256)
    limit.refused(sent_at=1e12, in_flight=20)
    assert limit.limit == 10


def test_success_brings_the_limit_back_to_its_maximum_and_not_over():
    limit = AdaptiveLimit(64)
    limit.refused(sent_at=1e12, in_flight=2)
    assert limit.limit == 1
    rounds = 0
    while limit.limit < 64:
        rounds += 1
        for _ in range(limit.limit):
            limit.succeeded()
    assert rounds <= RECOVERY_ROUNDS + 2
    for _ in range(1000):
        limit.succeeded()
    assert limit.limit == 64


def test_a_pause_ends_when_the_longest_wait_asked_for_is_over():
    clock = Clock()
    limit = AdaptiveLimit(4, clock=clock)
    assert limit.paused_s() == 0
    limit.pause(10)
    limit.pause(3)
    assert limit.paused_s() == 10
    clock.now += 10
    assert limit.paused_s() == 0
