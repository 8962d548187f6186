"""Things that go wrong in one way or another."""

import modal

app = modal.App("broken")


@app.function()
def forgets_its_source() -> None:
    import neighbour  # noqa: F401 - it lies beside this file, and is not in the Image


@app.function(secrets=[modal.Secret.from_name("never-made")])
def needs_a_secret() -> None: ...


@app.local_entrypoint()
def main() -> None:
    forgets_its_source.remote()


@app.local_entrypoint()
def hang() -> None:
    sandbox = modal.Sandbox.create("sleep", "1000", app=app, block_network=True)
    sandbox.exec("sleep", "1000")
    print("hanging", flush=True)
    sandbox.wait()
