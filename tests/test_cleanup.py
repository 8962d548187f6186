import asyncio

import pytest

from rlm.cleanup import forgiving


class Resource:
    """Something whose clean-up fails."""

    def __init__(self, error):
        self._error = error
        self.left_with = None

    async def __aenter__(self):
        return "held"

    async def __aexit__(self, kind, exc, trace):
        self.left_with = kind
        raise self._error


def leave(resource, tell, *, body_error=None):
    async def use():
        async with forgiving(resource, tell) as held:
            if body_error is not None:
                raise body_error
            return held

    return asyncio.run(use())


def test_what_a_clean_up_raises_is_told_in_a_line_and_costs_no_result():
    told = []
    assert leave(Resource(OSError("the disk\nis gone")), told.append) == "held"
    assert told == ["the run has ended, but cleaning up failed: OSError: the disk is gone"]


def test_an_error_of_the_work_is_the_one_that_is_raised():
    told, resource = [], Resource(OSError("gone"))
    with pytest.raises(ValueError, match="the work"):
        leave(resource, told.append, body_error=ValueError("the work"))
    assert resource.left_with is ValueError
    assert len(told) == 1


def test_a_cancellation_while_cleaning_up_is_heard():
    with pytest.raises(asyncio.CancelledError):
        leave(Resource(asyncio.CancelledError()), lambda _: None)
