import contextlib
import io
import json
import random
import re
import time
import traceback

import pytest

from rlm.offline import root, sub
from rlm.prompts import Prompts
from rlm.reply import parse_reply

SYSTEM = ("system", "You answer questions.")


class Run:
    """The loop and the REPL in twenty lines: cells are run in one namespace until FINAL is called."""

    def __init__(self, question, context, *, calls=None):
        self.messages = [SYSTEM, ("user", Prompts()("question", question=question))]
        self.context, self.calls = context, calls
        self.prompts, self.final, self.answer_sub = [], None, sub.answer
        self.start_repl()

    def start_repl(self):
        self.namespace = {
            "context": self.context,
            "parallel_llm_query": self.query,
            "budget": lambda: {"calls": {"spent": 0, "left": self.calls}},
            "FINAL": lambda value: setattr(self, "final", str(value)),
            "FINAL_VAR": lambda name: setattr(self, "final", str(self.namespace[name])),
        }

    def query(self, prompts, model=None, return_exceptions=False):
        self.prompts += prompts
        assert return_exceptions
        return [self.answer_sub(prompt) for prompt in prompts]

    def step(self):
        text = root.reply(self.messages)
        (cell,) = parse_reply(text).cells
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(cell, "<cell>", "exec"), self.namespace)
            except Exception:  # noqa: BLE001
                printed.write(traceback.format_exc())
        self.messages += [("assistant", text), ("user", f"Output of cell 1:\n{printed.getvalue()}")]
        return printed.getvalue()

    def to_the_end(self):
        while self.final is None:
            assert len(self.messages) < 30
            self.step()
        return self.final


def haystack(lines, seed=0):
    rng = random.Random(seed)
    words = ["apple", "river", "number", "window", "magic", "stone", "paper", "cloud", "engine", "garden"]
    rows = [" ".join(rng.choices(words, k=6)) for _ in range(lines)]
    rows[int(lines * 0.7)] = "The magic number is 1234567"
    return rows


LEASES = {
    "lease.txt": "LEASE\nThe lease of Mill Road was signed by Ada Smith.\nRent: 900",
    "notes.txt": "The flat is cold.\nNobody has looked at the boiler.",
}
PEOPLE = {
    "people": [{"name": "Ada", "city": "Leeds", "age": 36}, {"name": "Bob", "city": "York", "age": 41}],
    "teams": {"red": {"captain": "Cleo"}, "blue": {"captain": "Dan", "notes": ["won the cup in spring"]}},
}


@pytest.mark.parametrize(
    ("question", "context", "answer"),
    [
        ("What is the magic number?", "\n".join(haystack(3000)), "1234567"),
        ("What is the magic number?", haystack(3000), "1234567"),
        ("What is the magic number?", {"a.txt": "nothing", "b.txt": "\n".join(haystack(300))}, "1234567"),
        ("What is the magic number?", {"lines": [{"text": row} for row in haystack(300)]}, "1234567"),
        ("What is the magic number?", " ".join(haystack(3000)).replace(" The magic", ". The magic"), None),
        ("Who signed the lease?", LEASES["lease.txt"], "The lease of Mill Road was signed by Ada Smith."),
        ("Who signed the lease?", LEASES, "The lease of Mill Road was signed by Ada Smith."),
        ("In which city is Bob?", PEOPLE, 'people: {"name": "Bob", "city": "York", "age": 41}'),
        ("Who is captain of the blue team?", PEOPLE, 'teams.blue: {"captain": "Dan"}'),
        ("Who won the cup?", PEOPLE, "won the cup in spring"),
        ("Who signed the lease?", ["no", 3, None, ["x"], {}], root.NOTHING_FOUND),
        ("Who signed the lease?", "", root.NOTHING_FOUND),
        ("Who signed the lease?", None, root.NOTHING_FOUND),
    ],
)
def test_the_answer_is_found_in_a_context_of_any_kind(question, context, answer):
    final = Run(question, context).to_the_end()
    assert final == answer if answer is not None else "1234567" in final


def test_it_takes_four_replies_look_fan_out_verify_answer():
    run = Run("Who signed the lease?", LEASES)
    run.to_the_end()
    replies = [text for role, text in run.messages if role == "assistant"]
    assert [re.search(r"# step: (\w+)", text)[1] for text in replies] == ["look", "fan_out", "verify", "answer"]


def test_the_look_shows_type_sizes_and_a_sample():
    assert re.search(r"str - [\d,]+ chars, 3 lines, begins 'LEASE", Run("?", LEASES["lease.txt"]).step())
    assert "lease.txt: 63 chars" in (seen := Run("?", LEASES).step()), seen
    assert "list - list of 3,000" in Run("?", haystack(3000)).step()


@pytest.mark.parametrize(
    "question", ['```\nWhat\'s "this"?\n```', "\\", "'''", '"""x"""', "{x} $y %s", "\ud83d?", "é\r?"]
)
def test_any_question_is_put_into_a_cell_safely(question):
    run = Run(question, "one line")
    run.step()
    run.step()
    assert run.prompts == [f"Question: {question.strip()}\n\nText:\none line"]


def test_every_line_of_a_text_is_in_some_prompt_and_neighbours_overlap():
    rows = [f"row {number} of the ledger" for number in range(2000)]
    run = Run("What is the sum?", "\n".join(rows))
    run.to_the_end()
    texts = [prompt.partition("\n\nText:\n")[2] for prompt in run.prompts]
    seen = [row for text in texts for row in text.splitlines()]
    assert set(seen) == set(rows)
    assert len(seen) > len(rows)
    assert max(map(len, texts)) <= 4000


def test_a_text_without_lines_is_cut_with_overlap():
    run = Run("What is the sum?", "x" * 9_500)
    run.to_the_end()
    lengths = [len(prompt.partition("\n\nText:\n")[2]) for prompt in run.prompts]
    assert lengths == [4000, 4000, 1900]


def test_sub_calls_stay_within_what_the_budget_has_left():
    run = Run("What is the magic number?", haystack(3000), calls=3)
    assert run.to_the_end() == "1234567"
    assert len(run.prompts) == 3


@pytest.mark.parametrize("kind", ["text", "list", "json"])
def test_two_hundred_thousand_lines_are_narrowed_to_a_hundred_sub_calls_in_seconds(kind):
    rows = haystack(200_000)
    context = {"text": "\n".join(rows), "list": rows, "json": {"rows": [{"row": row} for row in rows]}}[kind]
    start = time.perf_counter()
    run = Run("What is the magic number?", context)
    assert run.to_the_end() == "1234567"
    assert time.perf_counter() - start < 6
    assert len(run.prompts) == 100


def test_an_answer_that_is_not_in_the_text_is_not_believed():
    run = Run("What is the magic number?", haystack(3000))
    run.answer_sub = lambda prompt: "The magic number is 42, I am sure" if "1234567" in prompt else "NOT FOUND"
    assert run.to_the_end() == root.NOTHING_FOUND


def test_failed_sub_calls_do_not_spoil_the_others():
    run = Run("What is the magic number?", haystack(3000))
    run.answer_sub = lambda prompt: sub.answer(prompt) if "1234567" in prompt else RuntimeError("no")
    assert run.to_the_end() == "1234567"


def test_after_a_new_repl_it_goes_on_from_the_fan_out():
    run = Run("Who signed the lease?", LEASES)
    run.step()
    run.step()
    run.start_repl()
    run.step()  # verify: a NameError, as all variables are gone
    assert "NameError" in run.messages[-1][1]
    assert "Ada Smith" in run.to_the_end()
    assert len(run.prompts) == 2


def test_it_gives_up_after_three_failed_fan_outs():
    run = Run("Who signed the lease?", LEASES)
    run.answer_sub = lambda prompt: RuntimeError("the provider is away")
    for _ in range(4):
        run.step()
    assert root.reply(run.messages) == f"FINAL({root.NOTHING_FOUND})"


@pytest.mark.parametrize("line", ["The lease was signed by Ada.", 'Signed (the "lease"): Ada\\Bob :)'])
def test_a_last_request_is_answered_in_text_with_the_best_so_far(line):
    run = Run("Who signed the lease?", line)
    for _ in range(3):
        run.step()
    run.messages.append(("user", "This is the last request: the run ends here. Give FINAL(answer)."))
    final = parse_reply(root.reply(run.messages)).final
    assert (final.kind == "variable", final.content) == (False, line)


def test_a_last_request_before_anything_was_found_is_answered_so():
    run = Run("Who signed the lease?", LEASES)
    run.step()
    run.messages.append(("user", "This is the last request."))
    assert root.reply(run.messages) == "FINAL(I could not find it.)"


def test_cells_are_json_safe():
    assert json.loads(json.dumps(root.reply([SYSTEM, ("user", "hello")])))
