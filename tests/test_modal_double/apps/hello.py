import asyncio
import os
import time

import modal

app = modal.App("hello")


@app.function()
def square(x: int) -> int:
    print(f"square of {x} in {os.getcwd()}")
    return x * x


@app.function()
async def fail(x: int) -> None:
    raise ValueError(f"no {x}")


@app.function()
async def count(n: int):
    for i in range(n):
        yield i


@app.function()
async def nested(x: int) -> int:
    return sum([v async for v in square.map.aio(range(x))])


@app.function()
@modal.concurrent(max_inputs=10)
async def slow(s: float) -> str:
    await asyncio.sleep(s)
    return os.environ["MODAL_TASK_ID"]


@app.local_entrypoint()
def main(n: int = 4) -> None:
    print("remote:", square.remote(n))
    print("map:", list(square.map(range(n))))
    call = square.spawn(7)
    print("spawn:", call.get(), modal.FunctionCall.from_id(call.object_id).get(timeout=0))
    print("gen:", list(count.remote_gen(n)))
    print("nested:", nested.remote(n))
    started = time.monotonic()
    print("concurrent:", len(set(slow.map([0.5] * 10))), time.monotonic() - started < 4)
    try:
        fail.remote(3)
    except ValueError as exc:
        print("error:", exc)
