"""A root LM's seat as a folder of files."""

import threading
import time

import openai
import pytest

from rlm.errors import InputError
from rlm.offline.server import OfflineSettings, serve_offline

ROOT = [{"role": "system", "content": "You are the root LM."}, {"role": "user", "content": "How many?"}]


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
    return path.read_text()


@pytest.fixture
def seat(tmp_path):
    """A folder with a server that asks there; `ask(messages)` gives a thread and what it will hold."""
    folder = tmp_path / "seat"
    with serve_offline(OfflineSettings(relay=folder, relay_subs=True)) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0)

        def ask(messages):
            answers = []

            def complete():
                completion = client.chat.completions.create(model="m", messages=messages)
                answers.append(completion.choices[0].message.content)

            thread = threading.Thread(target=complete)
            thread.start()
            return thread, answers

        yield folder, ask, server
        client.close()


def test_a_reply_file_answers_its_request_file(seat):
    folder, ask, _ = seat
    thread, answers = ask(ROOT)
    assert wait_for(folder / "0001.request.md") == "## system\n\nYou are the root LM.\n\n## user\n\nHow many?\n\n"
    (folder / "0001.reply.md").write_text("Three, I think.")
    thread.join()
    assert answers == ["Three, I think."]


def test_a_later_request_holds_what_is_new_since_the_last_reply(seat):
    folder, ask, _ = seat
    thread, answers = ask([*ROOT, {"role": "assistant", "content": "Look."}, {"role": "user", "content": "Output: 3"}])
    assert wait_for(folder / "0001.request.md") == "## user\n\nOutput: 3\n\n"
    (folder / "0001.reply.md").write_text("FINAL(3)")
    thread.join()
    assert answers == ["FINAL(3)"]


def test_sub_llm_calls_go_there_where_that_is_asked_for(seat):
    folder, ask, server = seat
    thread, answers = ask([{"role": "user", "content": "Is this a complaint?"}])
    assert "complaint" in wait_for(folder / "0001.request.md")
    (folder / "0001.reply.md").write_text("yes")
    thread.join()
    assert answers == ["yes"]
    assert (server.stats().sub_requests, server.stats().answered) == (1, 1)


def test_a_client_that_leaves_is_not_waited_for(tmp_path):
    with serve_offline(OfflineSettings(relay=tmp_path)) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0, timeout=0.5)
        with client, pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="m", messages=ROOT)
        while server.stats().in_flight:
            time.sleep(0.01)
        assert server.stats().abandoned == 1


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot use the relay folder"),
        serve_offline(OfflineSettings(relay=tmp_path / "file" / "seat")),
    ):
        pass
    with pytest.raises(InputError, match="needs --relay"):
        OfflineSettings(relay_subs=True)
