"""A Function for each thing the double does with Functions."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import modal

app = modal.App("work")
image = (
    modal.Image.debian_slim(python_version="3.11")
    .env({"COLOUR": "light blue"})
    .add_local_file(__file__, "/opt/somewhere/file.txt")
    .add_local_python_source("neighbour")
)
notes = modal.Dict.from_name("notes", create_if_missing=True)
volume = modal.Volume.from_name("shelf", create_if_missing=True)


@app.function(image=image, secrets=[modal.Secret.from_name("some-secret", required_keys=["SECRET_WORD"])])
def surroundings() -> dict[str, object]:
    import neighbour

    return {
        "cwd": os.getcwd(),
        "colour": os.environ["COLOUR"],
        "secret": os.environ["SECRET_WORD"],
        "file": Path("/opt/somewhere/file.txt").read_text()[:20],
        "neighbour": neighbour.__file__,
        "tmp": os.listdir("/tmp"),
        "host_env": "PYTEST_CURRENT_TEST" in os.environ,
    }


@app.function()
async def sleeper(key: str, seconds: float) -> str:
    """Counts its runs under `key`, so that a second one can be seen."""
    runs = await notes.get.aio(key, 0) + 1
    await notes.put.aio(key, runs)
    try:
        await asyncio.sleep(seconds if runs == 1 else 0)
    except asyncio.CancelledError:
        await notes.put.aio(key + ":cancelled", True)
        raise
    return f"run {runs}"


@app.function()
def sync_sleeper(key: str, seconds: float) -> str:
    runs = notes.get(key, 0) + 1
    notes.put(key, runs)
    if runs == 1:
        time.sleep(seconds)
    return f"run {runs}"


@app.function(retries=modal.Retries(max_retries=3, initial_delay=0.0, backoff_coefficient=1.0))
def flaky(key: str, good_from: int) -> int:
    runs = notes.get(key, 0) + 1
    notes.put(key, runs)
    if runs < good_from:
        raise RuntimeError(f"run {runs} is no good")
    return runs


@app.function(timeout=1)
def too_long() -> None:
    time.sleep(60)


@app.function()
def suicide(key: str, times: int) -> int:
    runs = notes.get(key, 0) + 1
    notes.put(key, runs)
    if runs <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return runs


@app.function()
async def stream(n: int) -> AsyncIterator[int]:
    for i in range(n):
        print(f"yielding {i}", flush=True)
        yield i


@app.function()
def echo(data: bytes) -> bytes:
    return data


@app.function(max_containers=1)
@modal.concurrent(max_inputs=8)
async def together(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return os.environ["MODAL_TASK_ID"]


@app.function(max_containers=2)
def where(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["MODAL_TASK_ID"]


@app.function(schedule=modal.Period(days=1), max_containers=1)
def tick() -> str:
    count = notes.get("ticks", 0) + 1
    notes.put("ticks", count)
    return f"tick {count}"


@app.function(volumes={"/shelf": volume})
def write(name: str, text: str, commit: bool) -> None:
    Path("/shelf", name).write_text(text)
    if commit:
        volume.commit()


@app.function(volumes={"/shelf": volume.with_mount_options(read_only=True)})
def read(name: str, reload: bool) -> str | None:
    if reload:
        volume.reload()
    path = Path("/shelf", name)
    return path.read_text() if path.exists() else None


@app.function()
def make_sandbox() -> str:
    sandbox = modal.Sandbox.create("sleep", "60", app=modal.App.lookup("work"), timeout=60, block_network=True)
    try:
        return sandbox.exec("echo", "from", "inside").stdout.read()
    finally:
        sandbox.terminate()


@app.cls()
class Greeter:
    word: str = modal.parameter(default="hello")

    @modal.enter()
    def enter(self) -> None:
        self.entered = True

    @modal.method()
    def greet(self, name: str) -> str:
        return f"{self.word} {name} {self.entered}"


@app.function()
def to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
