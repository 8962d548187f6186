"""Dict, Queue, Secret and Volume, seen by a client in this process."""

import io
import queue
import threading

import modal
import pytest

from tests.modal_double import Faults, ModalDouble


@pytest.mark.usefixtures("modal_double")
class TestDict:
    def test_operations(self) -> None:
        with modal.Dict.ephemeral() as d:
            assert d.put("a", {"x": 1}, skip_if_exists=True)
            assert not d.put("a", 2, skip_if_exists=True)
            d.update({"b": 2, "c": 3})
            assert (d.len(), d["a"], "b" in d, d.get("nope", 7)) == (3, {"x": 1}, True, 7)
            assert d.pop("b") == 2
            assert d.pop("b", None) is None
            with pytest.raises(KeyError):
                d.pop("b")
            assert sorted(d.items(), key=str) == [("a", {"x": 1}), ("c", 3)]
            d.clear()
            assert list(d.keys()) == []

    def test_only_one_of_many_claims_succeeds(self) -> None:
        with modal.Dict.ephemeral() as d:
            won: list[bool] = []
            threads = [
                threading.Thread(target=lambda i=i: won.append(d.put("k", i, skip_if_exists=True))) for i in range(10)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(won) == 1

    def test_a_name_that_was_never_made_is_not_found(self) -> None:
        with pytest.raises(modal.exception.NotFoundError):
            modal.Dict.from_name("never-made").get("x")

    def test_a_retried_success_looks_like_a_failure(self, modal_faults: Faults) -> None:
        with modal.Dict.ephemeral() as d:
            modal_faults.lose_reply("DictUpdate")
            assert d.put("k", "mine", skip_if_exists=True) is False
            assert d["k"] == "mine"

    def test_unavailable_is_retried_by_the_client(self, modal_double: ModalDouble, modal_faults: Faults) -> None:
        with modal.Dict.ephemeral() as d:
            d["k"] = 1
            before = modal_double.rpc_counts["DictGet"]
            modal_faults.unavailable("DictGet", 2)
            assert d["k"] == 1
            assert modal_double.rpc_counts["DictGet"] == before + 3
            modal_faults.unavailable("DictGet", 100)
            with pytest.raises(modal.exception.ServiceError):
                d.get("k")


@pytest.mark.usefixtures("modal_double")
class TestQueue:
    def test_partitions_are_first_in_first_out(self) -> None:
        with modal.Queue.ephemeral() as q:
            q.put_many([1, 2, 3])
            q.put("other", partition="p")
            assert list(q.iterate()) == [1, 2, 3]
            assert [q.get(), *q.get_many(5)] == [1, 2, 3]
            assert (q.len(), q.len(partition="p"), q.len(total=True)) == (0, 1, 1)
            assert q.get(partition="p") == "other"

    def test_get_waits_for_a_put(self) -> None:
        with modal.Queue.ephemeral() as q:
            timer = threading.Timer(0.2, q.put, ["late"])
            timer.start()
            assert q.get(timeout=5) == "late"
            timer.join()
            assert q.get(block=False) is None

    def test_a_full_partition_refuses(self) -> None:
        with modal.Queue.ephemeral() as q:
            q.put_many(list(range(5000)))
            with pytest.raises(queue.Full):
                q.put(1, block=False)


class TestSecret:
    def test_a_secret_that_was_never_made_is_not_found(self, modal_double: ModalDouble) -> None:
        with pytest.raises(modal.exception.NotFoundError):
            modal.Secret.from_name("never-made").hydrate()

    def test_required_keys_are_asked_for(self, modal_double: ModalDouble) -> None:
        modal_double.set_secret("half", {"A": "1"})
        modal.Secret.from_name("half", required_keys=["A"]).hydrate()
        with pytest.raises(modal.exception.NotFoundError, match="B"):
            modal.Secret.from_name("half", required_keys=["A", "B"]).hydrate()

    def test_the_cli_makes_and_lists_secrets(self, modal_double: ModalDouble) -> None:
        assert modal_double.cli("secret", "create", "by-cli", "K=v").returncode == 0
        listed = modal_double.cli("secret", "list", "--json")
        assert '"by-cli"' in listed.stdout


@pytest.mark.usefixtures("modal_double")
class TestVolume:
    @pytest.mark.parametrize("version", [1, 2])
    def test_files_are_put_listed_read_and_removed(self, version: int) -> None:
        volume = modal.Volume.from_name(f"files-{version}", create_if_missing=True, version=version)
        large = b"ab" * 5_000_000
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"small"), "/d/small.txt")
            batch.put_file(io.BytesIO(large), "/large.bin")
        assert sorted(e.path for e in volume.listdir("/", recursive=True)) == ["d", "d/small.txt", "large.bin"]
        assert b"".join(volume.read_file("d/small.txt")) == b"small"
        assert b"".join(volume.read_file("large.bin")) == large
        with pytest.raises(FileExistsError), volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"again"), "/d/small.txt")
        volume.remove_file("d", recursive=True)
        assert [e.path for e in volume.listdir("/")] == ["large.bin"]
        with pytest.raises(FileNotFoundError):
            list(volume.read_file("d/small.txt"))
