import copy
import pickle

import pytest

from rlm import errors
from rlm.errors import LimitReachedError, RLMError, SubLLMError

LIMIT = LimitReachedError("calls", used=3, limit=4, asked=2)


def every_class(root=RLMError):
    return [root, *(inner for kind in root.__subclasses__() for inner in every_class(kind))]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda exc: pickle.loads(pickle.dumps(exc))])
@pytest.mark.parametrize("kind", every_class())
def test_every_error_survives_being_copied_and_pickled(kind, again):
    error = LIMIT if kind is LimitReachedError else kind("what happened")
    error.add_note("a note")
    same = again(error)
    assert type(same) is type(error)
    assert (str(same), same.__dict__) == (str(error), error.__dict__)


def test_what_a_failed_prompt_knows_survives_too():
    same = pickle.loads(pickle.dumps(SubLLMError("no", index=7, attempts=3)))
    assert (str(same), same.index, same.attempts) == ("no", 7, 3)


def test_the_tree_names_every_error():
    assert all(kind.__name__ in errors.__doc__ for kind in every_class())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            LimitReachedError("calls", used=0, limit=20, asked=706),
            "706 calls asked for, 20 left of the run's limit of 20 calls",
        ),
        (LimitReachedError("calls", used=20, limit=20, asked=1), "the run's limit of 20 calls is used up"),
        (LimitReachedError("calls", used=20, limit=20), "the run's limit of 20 calls is used up"),
        (
            LimitReachedError("tokens", used=900, limit=1_000, asked=5_000),
            "5,000 tokens asked for, 100 left of the run's limit of 1,000 tokens",
        ),
        (
            LimitReachedError("usd", used=0.5, limit=0.75, asked=1),
            "$1.0000 asked for, $0.2500 left of the run's limit of $0.7500",
        ),
        (LimitReachedError("time", used=5, limit=5), "the run's limit of 5 seconds is used up"),
    ],
)
def test_a_limit_says_what_was_asked_for_and_what_was_left(error, message):
    assert str(error) == message
