"""Sandboxes, seen by a client in this process."""

import http.server
import os
import threading
import time
import uuid
from collections.abc import Iterator

import httpx
import modal
import pytest
from modal.exception import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    ResourceExhaustedError,
    SandboxFilesystemIsADirectoryError,
    SandboxFilesystemNotFoundError,
    SandboxTerminatedError,
    SandboxTimeoutError,
)

from tests.modal_double import Faults, ModalDouble, Settings

IMAGE = modal.Image.debian_slim(python_version="3.11").env({"COLOUR": "blue"}).add_local_file(__file__, "/app/me.py")

WEB = """
import http.server, os, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/out":
            body = urllib.request.urlopen(os.environ["OPENAI_BASE_URL"], timeout=5).read()
        else:
            body = f"{os.environ['WHO']} {self.headers.get('X-Verified-User-Data')}".encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""


@pytest.fixture
def box(box_app: modal.App) -> Iterator[modal.Sandbox]:
    sandbox = modal.Sandbox.create("cat", app=box_app, image=IMAGE, block_network=True, timeout=60)
    yield sandbox
    sandbox.terminate()


@pytest.fixture
def provider() -> Iterator[str]:
    """Something on the host's loopback that a Sandbox calls."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from the provider")

        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def worker(app: modal.App, who: str, **env: str) -> modal.Sandbox:
    return modal.Sandbox.create(
        "python",
        "-c",
        WEB,
        app=app,
        image=IMAGE,
        timeout=60,
        secrets=[modal.Secret.from_dict({"WHO": who, **env})],
        readiness_probe=modal.Probe.with_tcp(8080, interval_ms=20),
    )


class TestExec:
    def test_output_status_directory_and_environment(self, box: modal.Sandbox) -> None:
        code = "import os, sys; print(os.getcwd(), os.environ['COLOUR'], os.listdir('/app')); sys.exit(3)"
        process = box.exec("python", "-c", code)
        assert process.stdout.read() == "/root blue ['me.py']\n"
        assert process.wait() == 3
        process = box.exec("sh", "-c", "pwd; echo $X >&2", workdir="/some/where", env={"X": "y"})
        assert (process.stdout.read(), process.stderr.read(), process.poll()) == ("/some/where\n", "y\n", 0)

    def test_a_signal_is_told_from_an_exit(self, box: modal.Sandbox) -> None:
        assert box.exec("sh", "-c", "kill -9 $$").wait() == 137

    def test_frames_go_through_binary_stdin_and_stdout(self, box: modal.Sandbox) -> None:
        process = box.exec("cat", text=False)
        stream = iter(process.stdout)
        started = time.monotonic()
        for i in range(50):
            frame = bytes([i]) * 1000
            process.stdin.write(frame)
            process.stdin.drain()
            got = b""
            while len(got) < len(frame):
                got += next(stream)
            assert got == frame
        assert time.monotonic() - started < 2
        process.stdin.write_eof()
        process.stdin.drain()
        assert process.wait() == 0

    def test_stdin_takes_as_much_as_the_client_buffers(self, box: modal.Sandbox) -> None:
        process = box.exec("sh", "-c", "sleep 0.2; wc -c")
        process.stdin.write(b"x" * (16 << 20))
        process.stdin.write_eof()
        process.stdin.drain()
        assert int(process.stdout.read()) == 16 << 20

    def test_a_timeout_ends_the_command(self, box: modal.Sandbox) -> None:
        assert box.exec("sleep", "60", timeout=1).wait() == -1
        until = time.monotonic() + 5
        while "sleep 60" in box.exec("ps", "ax").stdout.read():
            assert time.monotonic() < until

    def test_what_cannot_be_started_is_refused(self, box: modal.Sandbox) -> None:
        with pytest.raises(InvalidError, match="no-such-program"):
            box.exec("no-such-program")

    def test_output_can_be_read_twice_by_a_new_reader(self, box: modal.Sandbox) -> None:
        process = box.exec("seq", "3")
        assert process.stdout.read() == "1\n2\n3\n"


class TestIsolation:
    def test_a_blocked_network_has_no_way_out(self, box: modal.Sandbox, provider: str) -> None:
        code = f"import urllib.request; urllib.request.urlopen('{provider}', timeout=2)"
        process = box.exec("python", "-c", code, env={"OPENAI_BASE_URL": provider})
        assert process.wait() == 1
        assert "Connection refused" in process.stderr.read()

    def test_writes_do_not_reach_the_host(self, box: modal.Sandbox) -> None:
        name = f"/usr/{uuid.uuid4().hex}"
        assert box.exec("touch", name).wait() == 0
        assert box.exec("test", "-e", name).wait() == 0
        assert not os.path.exists(name)

    def test_processes_of_the_host_and_its_project_are_not_seen(self, box: modal.Sandbox) -> None:
        assert len(box.exec("ps", "ax", "--no-headers").stdout.read().splitlines()) < 6
        assert box.exec("python", "-c", "import tests.modal_double").wait() == 1

    def test_ports_with_a_blocked_network_are_refused(self, box_app: modal.App, box: modal.Sandbox) -> None:
        with pytest.raises(InvalidError):
            modal.Sandbox.create(app=box_app, block_network=True, encrypted_ports=[80])
        with pytest.raises(InvalidError):
            box.create_connect_token()


class TestFilesystem:
    def test_files_are_written_read_listed_and_removed(self, box: modal.Sandbox) -> None:
        data = bytes(range(256)) * 20_000
        box.filesystem.write_bytes(data, "/data/deep/x.bin")
        assert box.filesystem.read_bytes("/data/deep/x.bin") == data
        box.filesystem.write_text("hé", "/data/t.txt")
        assert box.filesystem.read_text("/data/t.txt") == "hé"
        assert [(f.name, f.is_dir()) for f in box.filesystem.list_files("/data")] == [("deep", True), ("t.txt", False)]
        assert box.filesystem.stat("/data/t.txt").size == 3
        box.filesystem.make_directory("/data/new/dir")
        box.filesystem.remove("/data", recursive=True)
        with pytest.raises(SandboxFilesystemNotFoundError):
            box.filesystem.read_bytes("/data/t.txt")
        with pytest.raises(SandboxFilesystemIsADirectoryError):
            box.filesystem.write_text("x", "/usr")

    def test_local_files_are_copied_in_and_out(self, box: modal.Sandbox, tmp_path) -> None:
        (tmp_path / "in").write_bytes(b"abc")
        box.filesystem.copy_from_local(tmp_path / "in", "/x")
        box.filesystem.copy_to_local("/x", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"abc"

    def test_a_read_only_volume_shows_what_was_committed(self, box_app: modal.App, tmp_path) -> None:
        volume = modal.Volume.from_name("context", create_if_missing=True)
        (tmp_path / "context.txt").write_text("needle")
        with volume.batch_upload(force=True) as batch:
            batch.put_file(tmp_path / "context.txt", "/context.txt")
        mounts = {"/context": volume.with_mount_options(read_only=True)}
        sandbox = modal.Sandbox.create("sleep", "60", app=box_app, volumes=mounts, block_network=True)
        assert sandbox.exec("cat", "/context/context.txt").stdout.read() == "needle"
        assert sandbox.exec("touch", "/context/x").wait() != 0
        sandbox.terminate()


class TestLife:
    def test_the_entrypoint_is_the_life_of_it(self, box: modal.Sandbox) -> None:
        assert box.poll() is None
        box.stdin.write("one\ntwo\n")
        box.stdin.write_eof()
        box.stdin.drain()
        assert list(box.stdout) == ["one\n", "two\n"]
        box.wait()
        assert box.returncode == 0
        assert modal.Sandbox.from_id(box.object_id).poll() == 0
        with pytest.raises((NotFoundError, ConflictError)):
            modal.Sandbox.from_id(box.object_id).exec("true")

    def test_terminate_and_wait(self, box_app: modal.App) -> None:
        sandbox = modal.Sandbox.create("sleep", "60", app=box_app)
        process = sandbox.exec("sleep", "60")
        sandbox.terminate()
        with pytest.raises(SandboxTerminatedError):
            sandbox.wait()
        assert sandbox.poll() == 137
        with pytest.raises(NotFoundError):
            process.wait()

    def test_a_timeout_is_the_whole_life(self, box_app: modal.App) -> None:
        sandbox = modal.Sandbox.create("sleep", "60", app=box_app, timeout=1)
        with pytest.raises(SandboxTimeoutError):
            sandbox.wait()
        assert sandbox.returncode == 124

    def test_an_idle_one_ends(self, box_app: modal.App) -> None:
        sandbox = modal.Sandbox.create("sleep", "60", app=box_app, timeout=60, idle_timeout=1)
        sandbox.wait()
        assert sandbox.poll() is not None

    def test_names_tags_and_lists(self, box_app: modal.App, modal_double: ModalDouble) -> None:
        kind = uuid.uuid4().hex
        one = modal.Sandbox.create("sleep", "60", app=box_app, name="one", tags={"kind": kind, "n": "1"})
        two = modal.Sandbox.create("sleep", "60", app=box_app, tags={"kind": kind})
        try:
            with pytest.raises(AlreadyExistsError):
                modal.Sandbox.create("sleep", "60", app=box_app, name="one")
            assert modal.Sandbox.from_name("boxes", "one").object_id == one.object_id
            two.set_tags({"kind": kind, "n": "2"})
            assert two.get_tags() == {"kind": kind, "n": "2"}

            def listed(**tags: str) -> list[str]:
                return [s.object_id for s in modal.Sandbox.list(app_id=box_app.app_id, tags={"kind": kind, **tags})]

            assert listed() == [two.object_id, one.object_id]
            assert listed(n="1") == [one.object_id]
            assert {s.sandbox_id for s in modal_double.sandboxes()} >= {one.object_id, two.object_id}
            one.terminate()
            one.wait(raise_on_termination=False)
            assert listed() == [two.object_id]
            with pytest.raises(NotFoundError):
                modal.Sandbox.from_name("boxes", "one")
        finally:
            two.terminate()


class TestConnect:
    def test_workers_on_one_port_side_by_side(self, box_app: modal.App, provider: str) -> None:
        workers = [worker(box_app, who, OPENAI_BASE_URL=provider) for who in ("w1", "w2")]
        for who, sandbox in zip(("w1", "w2"), workers, strict=True):
            sandbox.wait_until_ready(timeout=10)
            token = sandbox.create_connect_token(user_metadata="meta", port=8080)
            with httpx.Client(base_url=token.url, headers={"Authorization": f"Bearer {token.token}"}) as client:
                assert client.get("/").text == f"{who} meta"
                assert client.get("/out").text == "from the provider"
                assert client.post("/", content=b"x" * 3_000_000).content == b"x" * 3_000_000
            assert httpx.get(token.url).status_code == 401
            assert httpx.get(token.url, headers={"Authorization": "Bearer wrong"}).status_code == 401
            sandbox.terminate()
            sandbox.wait(raise_on_termination=False)
            assert httpx.get(token.url, headers={"Authorization": f"Bearer {token.token}"}).status_code == 404

    def test_a_token_expires(self, box_app: modal.App, modal_faults: Faults) -> None:
        sandbox = worker(box_app, "w")
        sandbox.wait_until_ready(timeout=10)
        old = sandbox.create_connect_token()
        assert modal_faults.expire_tokens(sandbox.object_id) == 1
        assert httpx.get(old.url, headers={"Authorization": f"Bearer {old.token}"}).status_code == 401
        new = sandbox.create_connect_token()
        assert httpx.get(new.url, headers={"Authorization": f"Bearer {new.token}"}).status_code == 200
        sandbox.terminate()

    def test_a_tunnel_reaches_the_port(self, box_app: modal.App) -> None:
        sandbox = modal.Sandbox.create("python", "-m", "http.server", "80", app=box_app, unencrypted_ports=[80])
        host, port = sandbox.tunnels()[80].tcp_socket
        while sandbox.exec("sh", "-c", "ss -ltn | grep -q :80").wait() != 0:
            pass
        assert httpx.get(f"http://{host}:{port}/").status_code == 200
        sandbox.terminate()


@pytest.mark.usefixtures("needs_isolation")
def test_with_egress_the_allowlist_decides(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = provider.split(":")[2].split("/")[0]
    code = f"""
import http.client, os
for host in ("localhost", "127.0.0.1"):
    proxy = http.client.HTTPConnection(os.environ["HTTPS_PROXY"][7:])
    proxy.set_tunnel(host, {port})
    try:
        proxy.request("GET", "/")
        print(proxy.getresponse().read())
    except OSError as exc:
        print(exc)
"""
    with ModalDouble(Settings(egress=True)) as double:
        monkeypatch.setenv("MODAL_SERVER_URL", double.url)
        with modal.Client.from_credentials("ak-x", "as-x") as client:
            app = modal.App.lookup("out", create_if_missing=True, client=client)
            image = modal.Image.debian_slim()  # one that no other double has seen
            sandbox = modal.Sandbox.create(app=app, image=image, outbound_domain_allowlist=["localhost"], client=client)
            lines = sandbox.exec("python", "-c", code).stdout.read().splitlines()
    assert lines == ["b'from the provider'", "Tunnel connection failed: 403 Forbidden"]


class TestReadiness:
    def test_exec_probe(self, box_app: modal.App) -> None:
        probe = modal.Probe.with_exec("test", "-f", "/ready", interval_ms=20)
        sandbox = modal.Sandbox.create("sleep", "60", app=box_app, readiness_probe=probe)
        with pytest.raises(modal.exception.TimeoutError):
            sandbox.wait_until_ready(timeout=1)
        sandbox.exec("touch", "/ready").wait()
        sandbox.wait_until_ready(timeout=5)
        sandbox.terminate()

    def test_a_dead_one_never_becomes_ready(self, box_app: modal.App) -> None:
        sandbox = modal.Sandbox.create("false", app=box_app, readiness_probe=modal.Probe.with_tcp(8080))
        with pytest.raises(ConflictError):
            sandbox.wait_until_ready(timeout=10)
        assert sandbox.poll() == 1


class TestCruelty:
    def test_killed_in_the_middle(self, box_app: modal.App, modal_faults: Faults) -> None:
        sandbox = modal.Sandbox.create("sleep", "60", app=box_app)
        process = sandbox.exec("sleep", "60")
        modal_faults.kill_sandbox(sandbox.object_id, after_s=0.2)
        with pytest.raises(NotFoundError):
            process.wait()
        assert sandbox.poll() == 137
        with pytest.raises(NotFoundError):
            sandbox.filesystem.read_bytes("/etc/hostname")

    def test_slow_to_schedule(self, box_app: modal.App, modal_faults: Faults) -> None:
        modal_faults.sandbox_latency(0.5)
        started = time.monotonic()
        sandbox = modal.Sandbox.create("sleep", "60", app=box_app)
        assert time.monotonic() - started < 0.4
        assert sandbox.exec("true").wait() == 0
        assert time.monotonic() - started > 0.5
        sandbox.terminate()

    def test_creation_is_limited(self, box_app: modal.App, modal_faults: Faults) -> None:
        modal_faults.creation_rate(2, per_s=60)
        made = [modal.Sandbox.create("sleep", "60", app=box_app) for _ in range(2)]
        with pytest.raises(ResourceExhaustedError):
            modal.Sandbox.create("sleep", "60", app=box_app)
        for sandbox in made:
            sandbox.terminate()

    def test_latency_and_unavailability(self, box: modal.Sandbox, modal_faults: Faults) -> None:
        modal_faults.latency("TaskExecStart", 0.3)
        modal_faults.unavailable("TaskExecStart", 2)
        modal_faults.lose_reply("TaskExecStart", 1)
        started = time.monotonic()
        assert box.exec("echo", "once").stdout.read() == "once\n"
        assert time.monotonic() - started > 0.3
