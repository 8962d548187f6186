"""Function calls, seen by a client in this process against deployed Functions."""

import asyncio
import sys
import time
import uuid

import modal
import pytest

from tests.modal_double import Faults, ModalDouble, RunFailed


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def function(name: str) -> modal.Function:
    return modal.Function.from_name("work", name)


def wait_for(condition, seconds: float = 10.0):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
    return value


def test_a_container_has_what_its_image_and_secrets_say_and_no_more(
    deployed: ModalDouble, needs_isolation: None
) -> None:
    found = function("surroundings").remote()
    assert found["cwd"] == "/root"
    assert found["colour"] == "light blue"
    assert found["secret"] == "xyzzy"
    assert found["file"] == '"""A Function for ea'
    assert found["neighbour"] == "/root/neighbour.py"
    assert [name for name in found["tmp"] if f"/tmp/{name}" not in sys.prefix] == []
    assert found["host_env"] is False


def test_map_keeps_order_and_generators_stream(deployed: ModalDouble) -> None:
    assert list(function("echo").map([b"%d" % i for i in range(40)])) == [b"%d" % i for i in range(40)]
    assert list(function("stream").remote_gen(5)) == [0, 1, 2, 3, 4]
    assert "yielding 4" in deployed.logs("work")
    assert "yielding 4" in deployed.cli("app", "logs", "work", "--tail", "1000").stdout


def test_large_arguments_and_results_travel_as_blobs(deployed: ModalDouble) -> None:
    data = bytes(range(256)) * 20_000
    before = deployed.rpc_counts["BlobCreate"]
    assert function("echo").remote(data) == data
    assert deployed.rpc_counts["BlobCreate"] == before + 2


def test_spawn_is_polled_and_found_again_by_id(deployed: ModalDouble, key: str) -> None:
    call = function("sleeper").spawn(key, 1.0)
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    again = modal.FunctionCall.from_id(call.object_id)
    assert again.get(timeout=10) == "run 1"
    assert again.get(timeout=0) == "run 1"
    with pytest.raises(modal.exception.NotFoundError):
        modal.FunctionCall.from_id("fc-0000000000000000000000").get(timeout=0)


@pytest.mark.parametrize("name", ["sleeper", "sync_sleeper"])
def test_a_running_call_is_cancelled(deployed: ModalDouble, key: str, name: str) -> None:
    call = function(name).spawn(key, 60)
    notes = modal.Dict.from_name("notes")
    wait_for(lambda: notes.get(key))
    call.cancel()
    with pytest.raises(modal.exception.RemoteError):
        call.get(timeout=10)
    if name == "sleeper":
        assert notes[key + ":cancelled"]


def test_a_pending_call_is_cancelled_at_once(deployed: ModalDouble) -> None:
    busy = [function("where").spawn(1.0) for _ in range(3)]
    call = function("where").spawn(0)
    call.cancel()
    with pytest.raises(modal.exception.RemoteError):
        call.get(timeout=0)
    assert len({c.get() for c in busy}) <= 2


def test_terminating_containers_kills_what_does_not_listen(deployed: ModalDouble, key: str) -> None:
    call = function("sync_sleeper").spawn(key, 60)
    wait_for(lambda: modal.Dict.from_name("notes").get(key))
    call.cancel(terminate_containers=True)
    with pytest.raises(modal.exception.RemoteError):
        call.get(timeout=5)


def test_concurrent_inputs_share_a_container(deployed: ModalDouble) -> None:
    list(function("together").map([0.0]))
    started = time.monotonic()
    assert len(set(function("together").map([0.5] * 8))) == 1
    assert time.monotonic() - started < 2


def test_retries_are_bounded_by_the_policy(deployed: ModalDouble, key: str) -> None:
    assert function("flaky").remote(key, 3) == 3
    with pytest.raises(RuntimeError, match="run 4 is no good"):
        function("flaky").remote(key + "x", 9)


def test_a_call_over_its_timeout_fails_with_it(deployed: ModalDouble) -> None:
    with pytest.raises(modal.exception.FunctionTimeoutError):
        function("too_long").remote()


def test_an_input_whose_container_dies_runs_again_but_not_for_ever(deployed: ModalDouble, key: str) -> None:
    assert function("suicide").remote(key, 2) == 3
    with pytest.raises(modal.exception.InternalFailure):
        function("suicide").remote(key + "x", 99)


@pytest.mark.parametrize("name", ["sleeper", "sync_sleeper"])
def test_a_preempted_input_runs_again(deployed: ModalDouble, modal_faults: Faults, key: str, name: str) -> None:
    call = function(name).spawn(key, 60)
    wait_for(lambda: modal.Dict.from_name("notes").get(key))
    assert modal_faults.preempt(name) == 1
    assert call.get(timeout=15) == "run 2"


def test_a_killed_container_is_replaced(deployed: ModalDouble, modal_faults: Faults, key: str) -> None:
    call = function("sleeper").spawn(key, 60)
    wait_for(lambda: modal.Dict.from_name("notes").get(key))
    [container] = [c for c in deployed.containers("sleeper") if c.inputs]
    modal_faults.kill_container(container.task_id)
    assert call.get(timeout=15) == "run 2"


def test_a_scheduled_function_runs_on_demand(deployed: ModalDouble) -> None:
    assert deployed.run_schedule_sync("work", "tick") == "tick 1"
    assert asyncio.run(deployed.run_schedule("work", "tick")) == "tick 2"
    with pytest.raises(RunFailed, match="missing"):
        deployed.run_schedule_sync("work", "echo")


def test_a_class_has_parameters_and_methods(deployed: ModalDouble) -> None:
    greeter = modal.Cls.from_name("work", "Greeter")
    assert greeter(word="good morning").greet.remote("you") == "good morning you True"


def test_a_function_makes_a_sandbox(deployed: ModalDouble, needs_isolation: None) -> None:
    assert function("make_sandbox").remote() == "from inside\n"


def test_volume_writes_are_seen_after_commit_and_reload(deployed: ModalDouble, needs_isolation: None) -> None:
    assert function("read").remote("a.txt", reload=False) is None
    function("write").remote("a.txt", "one", commit=False)
    assert function("read").remote("a.txt", reload=True) is None
    function("write").remote("b.txt", "two", commit=True)
    assert function("read").remote("b.txt", reload=False) is None
    assert function("read").remote("b.txt", reload=True) == "two"
    assert b"".join(modal.Volume.from_name("shelf").read_file("a.txt")) == b"one"
