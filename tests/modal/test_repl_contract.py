"""What a local REPL does, one in a Sandbox does: the tests of the one, with the launcher of the other."""

from tests.modal.test_repl import on_modal, start
from tests.repl import test_cells, test_death

__all__ = ["on_modal", "start"]

OF_THE_LOCAL_ONE = ("test_two_sessions_share_nothing",)  # they share a machine there, and compare its folders

found = {name: test for name, test in vars(test_cells).items() if name.startswith("test_")}
globals().update({name: test for name, test in found.items() if name not in OF_THE_LOCAL_ONE})

test_a_flood_of_calls = test_death.test_a_flood_of_calls_is_held_back_until_they_are_answered
