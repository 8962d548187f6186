"""What a cell may call: sub-LLMs, child runs, the budget, and the ways to answer."""

import asyncio

import pytest

from rlm.errors import ProviderError
from rlm.events import Answer

BUILTINS = ["context", "llm_query", "parallel_llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched"]
BUILTINS += ["FINAL", "FINAL_VAR", "SHOW_VARS", "budget", "SubLLMError", "BudgetError"]


def test_sub_llms_answer_in_the_order_of_the_prompts(repl):
    assert repl.run("llm_query('hi'), parallel_llm_query(['a', 'b']), llm_query_batched(('c',))").value == (
        "('HI', ['A', 'B'], ['C'])"
    )
    assert repl.run("parallel_llm_query([]), parallel_llm_query(str(i) for i in range(2))").value == "([], ['0', '1'])"


def test_prompts_that_are_no_str_are_made_one_and_a_single_str_is_no_batch(repl):
    assert repl.run("llm_query(5), parallel_llm_query([None, {'k': 1}])").value == """('5', ['NONE', "{'K': 1}"])"""
    assert "a batch is a list of prompts" in repl.run("parallel_llm_query('one')").error
    assert "a batch is a list of prompts" in repl.run("rlm_query_batched('one')").error


def test_a_prompt_with_lone_surrogates_is_sent(repl):
    assert repl.run(r"llm_query('a\ud800b')").value == "'A\ufffdB'"


def test_the_model_is_passed_on(start):
    async def answer(call):
        return [{"text": str(call.model)} for _ in call.items]

    assert start(answer=answer).run(
        "llm_query('a'), llm_query('a', 'big'), parallel_llm_query(['a'], model='x')"
    ).value == ("('None', 'big', ['x'])")


def test_child_runs_get_their_context(repl):
    result = repl.run("rlm_query('q'), rlm_query('q', {'a': [1]}), rlm_query_batched(['p', 'q'], ['x', None])")
    assert result.value == str(("q over 'null'", "q over '{\"a\": [1]}'", ["p over 'x'", "q over 'null'"]))
    assert "2 prompts but 1 contexts" in repl.run("rlm_query_batched(['p', 'q'], ['x'])").error
    assert "not JSON serializable" in repl.run("rlm_query('p', {1, 2})").error


async def fail_some(call):
    return [{"error": f"no {text}"} if text.startswith("bad") else {"text": text} for text in call.items]


def test_a_failed_sub_llm_raises_in_the_cell(start):
    repl = start(answer=fail_some)
    assert repl.run("llm_query('bad 1')").error.endswith("\nSubLLMError: no bad 1")
    assert repl.run(
        "try: parallel_llm_query(['a', 'bad'])\nexcept SubLLMError as exc: print('caught', exc)"
    ).stdout == ("caught no bad\n")


def test_return_exceptions_keeps_the_others(start):
    result = start(answer=fail_some).run("parallel_llm_query(['a', 'bad', 'b'], return_exceptions=True)")
    assert result.value == "['a', SubLLMError('no bad'), 'b']"


def test_a_call_beyond_the_budget_has_its_own_class(start):
    async def answer(call):
        return [{"error": "used up", "budget": True} for _ in call.items]

    assert start(answer=answer).run("try: llm_query('a')\nexcept BudgetError as exc: print(repr(exc))").stdout == (
        "BudgetError('used up')\n"
    )


def test_a_call_that_is_too_large_is_an_error_of_the_cell(repl):
    assert "one call may carry 256 MB; this one has 300 MB" in repl.run("llm_query('x' * (300 << 20))").error
    assert repl.run("llm_query('ok')").value == "'OK'"


@pytest.mark.parametrize(
    "code",
    [
        """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(4) as pool: print(list(pool.map(llm_query, "abcd")))
        """,
        """
        import asyncio
        print(await asyncio.gather(*(asyncio.to_thread(llm_query, p) for p in "abcd")))
        """,
    ],
    ids=["threads", "asyncio"],
)
def test_threads_and_asyncio_call_really_in_parallel(start, code):
    arrived = []
    together = asyncio.Event()

    async def answer(call):
        arrived.append(call.items[0])
        if len(arrived) == 4:
            together.set()
        await together.wait()  # for ever, if the calls came one after the other
        return [{"text": call.items[0].upper()}]

    assert start(answer=answer, cell_timeout_s=5).run(code).stdout == "['A', 'B', 'C', 'D']\n"


def test_answers_that_come_in_another_order_reach_their_callers(start):
    first = asyncio.Event()

    async def answer(call):
        if call.items[0] == "slow":
            await first.wait()
        first.set()
        return [{"text": call.items[0]}]

    result = start(answer=answer).run("""
        import threading
        got = {}
        threads = [threading.Thread(target=lambda p=p: got.update({p: llm_query(p)})) for p in ("slow", "fast")]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        sorted(got.items())
    """)
    assert result.value == "[('fast', 'fast'), ('slow', 'slow')]"


def test_what_the_answering_raises_ends_the_run(start):
    async def answer(call):
        raise ProviderError("key refused") if call.items == ["a"] else ZeroDivisionError

    repl = start(answer=answer)
    with pytest.raises(ProviderError, match="key refused"):
        repl.run("x = 1; llm_query('a')")
    with pytest.raises(ZeroDivisionError):
        repl.run("llm_query('b')")
    assert "NameError" in repl.run("x").error  # in a fresh process


def test_the_budget_is_told(repl):
    assert repl.run("budget()").value == "{'calls': 3, 'usd': None}"


def test_overwritten_builtins_are_restored(repl):
    repl.run("; ".join(f"{name} = 'mine'" for name in BUILTINS))
    repl.run("del answer")
    result = repl.run(f"[name for name in {BUILTINS} if globals()[name] == 'mine'], answer")
    assert result.value == "([], {'content': '', 'ready': False})"


def test_show_vars_tells_names_types_and_sizes(repl):
    assert repl.run("print(SHOW_VARS())").stdout == "no variables yet\n"
    repl.run("text = 'x' * 1234\nn = 5\ndef f(): ...\n[1]")
    assert repl.run("print(SHOW_VARS())").stdout == "f: function\nn: int\ntext: str, 1,234 long\n"


def test_final_ends_the_cell_with_the_answer(repl):
    result = repl.run("x = 1\nprint('before')\nFINAL('the answer')\nx = 2")
    assert (result.final.text, result.stdout, result.error) == ("the answer", "before\n", None)
    assert repl.run("x").value == "1"
    assert repl.run("x").final is None


@pytest.mark.parametrize(
    ("code", "final"),
    [
        ("FINAL(42)", "42"),
        ("FINAL({'a': [1]})", "{'a': [1]}"),
        ("FINAL()", ""),
        ("FINAL('')", ""),
        ("FINAL(r'\\ud800'.encode().decode('unicode_escape'))", "\ufffd"),
        ("x = 'value'\nFINAL_VAR('x')", "value"),
        ("x = 'value'\nFINAL_VAR(' x ')", "value"),
        ("x = 'value'\nFINAL_VAR(x)", "value"),
        ("x = 'y'; y = 'no'\nFINAL_VAR(x)", "y"),
        ("def f():\n    inside = 'local'\n    FINAL_VAR(inside)\nf()", "local"),
        ("try:\n    FINAL('kept')\nexcept:\n    print('swallowed')", "kept"),
        ("try:\n    FINAL('first')\nexcept:\n    FINAL('second')", "first"),
        ("await __import__('asyncio').gather(__import__('asyncio').to_thread(FINAL, 'async'))", "async"),
        ("import threading\nt = threading.Thread(target=FINAL, args=['thread'])\nt.start(); t.join()", "thread"),
        ("answer['content'] = 'said'; answer['ready'] = True", "said"),
        ("answer['content'] = 42; answer['ready'] = 1", "42"),
        ("answer['ready'] = True", ""),
        ("answer = {'content': 'rebound', 'ready': True}", "rebound"),
        ("answer.update(content='first', ready=True)\nFINAL('final')", "final"),
        ("answer.update(content='said', ready=True)\n1 / 0", "said"),
        ("answer['content'] = 'not ready'", None),
        ("answer = 'a text'", None),
        ("'FINAL(1)'", None),
    ],
)
def test_the_ways_to_answer(repl, code, final):
    assert repl.run(code).final == (None if final is None else Answer(text=final))


def test_an_answer_can_be_made_over_several_cells(repl):
    assert repl.run("answer['content'] += 'a'").final is None
    assert repl.run("answer['content'] += 'b'; answer['ready'] = True").final.text == "ab"


def test_final_var_of_an_unknown_name_tells_the_known_ones(repl):
    repl.run("result = 1")
    error = repl.run("FINAL_VAR('reslt')").error
    assert error.endswith("NameError: FINAL_VAR: there is no variable 'reslt'. Variables: result")
    assert "NameError" in repl.run("FINAL_VAR(unknown)").error


def test_an_answer_that_is_too_long_is_refused(repl):
    assert "an answer may have 10,000,000 characters" in repl.run("FINAL('x' * 10_000_001)").error
    result = repl.run("answer.update(content='x' * 10_000_001, ready=True)")
    assert result.final is None
    assert "an answer may have" in result.error
    assert len(repl.run("FINAL('x' * 10_000_000)").final.text) == 10_000_000


def test_the_answer_of_a_late_thread_is_not_lost(repl):
    repl.run("""
        import threading
        go = threading.Event()
        thread = threading.Thread(target=lambda: (go.wait(), FINAL("late")))
        thread.start()
    """)
    assert repl.run("go.set(); thread.join()").final.text == "late"


def test_changes_inside_the_context_stay_and_a_rebound_one_comes_back(start):
    repl = start({"a": 1})
    repl.run("context['b'] = 2")
    assert repl.run("context").value == "{'a': 1, 'b': 2}"
    repl.run("context = 5")
    assert repl.run("context").value == "{'a': 1, 'b': 2}"
