"""What a cell may ask: sub-LLMs, child runs, the budget."""

import asyncio

import pytest

from rlm.errors import ProviderError


def test_sub_llms_answer_in_the_order_of_the_prompts(repl):
    assert repl.run("llm_query('hi'), parallel_llm_query(['a', 'b']), llm_query_batched(('c',))").value == (
        "('HI', ['A', 'B'], ['C'])"
    )
    assert repl.run("parallel_llm_query([]), parallel_llm_query(str(i) for i in range(2))").value == "([], ['0', '1'])"


async def nothing_is_to_be_asked(call):
    raise AssertionError(f"this was sent: {call}")


@pytest.fixture(scope="module")
def strict(start_shared):
    """A REPL in which nothing may be asked."""
    return start_shared(answer=nothing_is_to_be_asked, max_prompt_chars=1_000)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("llm_query(['a'])", "TypeError: llm_query: the prompt must be a str, not list: write what it holds"),
        ("llm_query({'role': 'user'})", "TypeError: llm_query: the prompt must be a str, not dict: write what it"),
        ("llm_query([{'role': 'user', 'content': 'q'}])", "must be a str, not list"),
        ("llm_query(None)", "TypeError: llm_query: the prompt must be a str, not NoneType: there is no text"),
        ("llm_query(5)", "TypeError: llm_query: the prompt must be a str, not int: write it into a text"),
        ("llm_query(b'a')", "TypeError: llm_query: the prompt must be a str, not bytes: decode the bytes first"),
        ("rlm_query(['a'])", "TypeError: rlm_query: the prompt must be a str, not list"),
        ("parallel_llm_query(['a', {'b': 1}])", "parallel_llm_query: the prompt at index 1 must be a str, not dict"),
        ("llm_query_batched([['a']])", "parallel_llm_query: the prompt at index 0 must be a str, not list"),
        ("parallel_llm_query('one')", "TypeError: parallel_llm_query takes a list of prompts, not one str"),
        ("parallel_llm_query(b'one')", "TypeError: parallel_llm_query takes a list of prompts, not one bytes"),
        ("parallel_llm_query({'a': 1})", "TypeError: parallel_llm_query takes a list of prompts, not one dict"),
        ("rlm_query_batched('one')", "TypeError: rlm_query_batched takes a list of prompts, not one str"),
        ("parallel_llm_query(None)", "TypeError: 'NoneType' object is not iterable"),
        ("parallel_llm_query(iter(str, 1))", "ValueError: parallel_llm_query: one call may have 100,000 prompts"),
        ("rlm_query_batched(['q'] * 1001)", "ValueError: rlm_query_batched: one call may have 1,000 prompts"),
        ("llm_query('x' * 1001)", "ValueError: llm_query: the prompt has 1,001 characters, and a sub-LLM takes 1,000"),
        ("rlm_query('x' * 1001)", "ValueError: rlm_query: the prompt has 1,001 characters"),
        (
            "parallel_llm_query(['a', 'x' * 2000])",
            "the prompt at index 1 has 2,000 characters, and a sub-LLM",
        ),
        ("llm_query('a', model=5)", "TypeError: model must be the name of a model, a str, not int"),
        ("parallel_llm_query(['a'], model='A' * 1_000_000)", "ValueError: model must be the name of a model: this has"),
        ("rlm_query_batched(['p', 'q'], ['x'])", "ValueError: rlm_query_batched: 2 prompts but 1 contexts"),
        ("rlm_query('p', {1, 2})", "TypeError: Object of type set is not JSON serializable"),
        ("llm_query()", "TypeError: llm_query() missing 1 required positional argument: 'prompt'"),
        ("llm_query('a', temperature=1)", "TypeError: llm_query() got an unexpected keyword argument 'temperature'"),
        ("FINAL_VAR()", "TypeError: FINAL_VAR() missing 1 required positional argument: 'name'"),
    ],
)
def test_what_no_sub_llm_can_be_asked_is_refused_before_anything_is_sent(strict, code, error):
    result = strict.run(code)
    assert error in result.error
    assert "sandbox_image" not in result.error


def test_a_prompt_as_long_as_a_sub_llm_takes_is_sent(start):
    assert start(max_prompt_chars=1_000).run("len(llm_query('x' * 1000))").value == "1000"


def test_a_str_of_another_class_is_sent_as_the_text_it_is(repl):
    result = repl.run("""
        class Odd(str):
            def __str__(self): return "another"
            def __len__(self): return 0
        parallel_llm_query([Odd("text"), "plain"])
    """)
    assert result.value == "['TEXT', 'PLAIN']"


@pytest.mark.parametrize(
    "name", ["llm_query", "parallel_llm_query", "rlm_query", "rlm_query_batched", "budget", "FINAL"]
)
def test_help_shows_a_name_that_cells_know_and_what_it_is_for(shared, name):
    told = shared.run(f"help({name})").stdout
    assert f"\n{name}(" in told
    assert "self" not in told
    assert len(told.split(f"{name}(")[1].splitlines()) >= 2
    assert shared.run(name).value.startswith(f"<function {name} at ")


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


async def fail_some(call):
    return [
        {"error": f"no {text}", "index": index, "attempts": 4} if text.startswith("bad") else {"text": text}
        for index, text in enumerate(call.items)
    ]


def test_a_failed_sub_llm_raises_in_the_cell(start):
    repl = start(answer=fail_some)
    assert repl.run("llm_query('bad 1')").error.endswith("\nSubLLMError: no bad 1 (tried 4 times)")
    assert (
        repl.run("try: llm_query('bad')\nexcept SubLLMError as exc: print(exc.index, exc.attempts)").stdout == "0 4\n"
    )


def test_a_batch_with_failures_names_them_and_carries_the_answers_of_the_others(start):
    repl = start(answer=fail_some)
    error = repl.run("parallel_llm_query(['a', 'bad 1', 'b', 'bad 2'])").error
    assert error.endswith(
        "\nSubLLMError: no bad 1 (tried 4 times) [2 of 4 prompts failed, the first at index 1; the others' answers are "
        "e.answers, after `except SubLLMError as e`]"
    )
    result = repl.run("""
        try:
            parallel_llm_query(['a', 'bad 1', 'b', 'bad 2'])
        except SubLLMError as e:
            print(e.index, e.attempts, e.answers)
    """)
    assert result.stdout == "1 4 ['a', None, 'b', None]\n"
    error = repl.run("parallel_llm_query(['bad 1', 'bad 2'])").error
    assert "no bad 1 (tried 4 times) [2 of 2 prompts failed, the first at index 0; none was answered]" in error


def test_a_batch_that_was_refused_as_a_whole_says_why_once(start):
    async def answer(call):
        return [{"error": "2 calls asked for, 1 is left", "budget": True}] * len(call.items)

    error = start(answer=answer).run("parallel_llm_query(['a', 'b'])").error
    assert error.endswith("\nBudgetError: 2 calls asked for, 1 is left")


def test_a_batch_of_child_runs_with_failures_carries_the_answers_of_the_others(start):
    async def answer(call):
        return [{"error": "no answer", "index": 0, "attempts": 1}, {"text": "found"}]

    result = start(answer=answer).run("""
        try:
            rlm_query_batched(['p', 'q'])
        except SubLLMError as e:
            print(e, e.answers)
    """)
    assert result.stdout.startswith("no answer [1 of 2 prompts failed, the first at index 0; the others' answers are")
    assert result.stdout.endswith("[None, 'found']\n")


def test_return_exceptions_keeps_the_others(start):
    repl = start(answer=fail_some)
    result = repl.run("found = parallel_llm_query(['a', 'bad', 'b'], return_exceptions=True)\nfound")
    assert result.value == "['a', SubLLMError('no bad (tried 4 times)'), 'b']"
    assert repl.run("found[1].index, found[1].attempts").value == "(1, 4)"


def test_an_error_of_a_sub_llm_can_be_pickled(start):
    result = start(answer=fail_some).run("""
        import pickle
        try:
            parallel_llm_query(['a', 'bad'])
        except SubLLMError as e:
            copy = pickle.loads(pickle.dumps(e))
        type(copy) is SubLLMError, copy.index, copy.attempts, copy.answers, str(copy)[:6]
    """)
    assert result.value == "(True, 1, 4, ['a', None], 'no bad')"


def test_an_answer_that_was_cut_is_marked_at_its_end(start):
    async def answer(call):
        return [{"text": "half", "cut": True}, {"text": "whole"}]

    assert start(answer=answer).run("parallel_llm_query(['a', 'b'])").value == (
        r"['half\n[cut: the sub-LLM reached its output limit]', 'whole']"
    )


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


def test_a_thread_between_two_cells_hears_that_the_answering_failed_and_the_next_cell_raises_it(start):
    cell_is_over = asyncio.Event()
    heard = asyncio.Queue()

    async def answer(call):
        if call.items == ["a"]:
            await cell_is_over.wait()
            raise ProviderError("key refused")
        heard.put_nowait(call.items)
        return [{"text": ""}]

    repl = start(answer=answer)
    repl.run("""
        import threading
        def ask():
            try: llm_query("a")
            except SubLLMError as exc: llm_query(f"heard: {exc}")
        threading.Thread(target=ask).start()
    """)
    cell_is_over.set()
    assert repl.runner.run(asyncio.wait_for(heard.get(), 10)) == ["heard: the run cannot go on: key refused"]
    with pytest.raises(ProviderError, match="key refused"):
        repl.run("1")
    assert repl.run("1").value == "1"  # in a fresh process


def test_a_call_carries_the_cell_whose_thread_makes_it(start):
    async def answer(call):
        return [{"text": f"{call.cell}"} for _ in call.items]

    repl = start(answer=answer)
    repl.run("""
        import threading
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(1)
        go, done, said = threading.Event(), threading.Event(), []
        def late():
            go.wait()
            said.append(llm_query("a"))
            done.set()
        threading.Thread(target=late).start()
        pool.submit(int).result()
    """)
    result = repl.run("go.set(); done.wait(); said + [llm_query('a'), pool.submit(llm_query, 'a').result()]")
    assert result.value == "['1', '2', '2']"  # an idle pool works for the cell that gives it work


def test_the_budget_is_told(repl):
    assert repl.run("budget()").value == "{'calls': {'spent': 2, 'left': 3}, 'usd': {'spent': 0.01, 'left': None}}"
