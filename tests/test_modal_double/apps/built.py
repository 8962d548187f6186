"""Two Images, one with a package and one without it."""

import modal

app = modal.App("built")
plain = modal.Image.debian_slim(python_version="3.11")
with_package = plain.pip_install("iniconfig==2.0.0").env({"A": "b"})
with_uv = plain.uv_pip_install("iniconfig==2.0.0")


@app.function(image=with_package)
def has() -> str:
    import importlib.metadata

    return importlib.metadata.version("iniconfig")


@app.function(image=with_uv)
def has_by_uv() -> str:
    return has.local()


@app.function(image=plain.pip_install("packaging"))
def has_not() -> None:
    import iniconfig  # noqa: F401


@app.local_entrypoint()
def main() -> None:
    print("has", has.remote(), has_by_uv.remote())
    sandbox = modal.Sandbox.create("sleep", "100", app=app, image=with_package)
    process = sandbox.exec("python", "-c", "import iniconfig; import modal")
    process.wait()
    print("sandbox", process.stderr.read().strip().splitlines()[-1])
    try:
        has_not.remote()
    except ModuleNotFoundError as exc:
        print("has not", exc)


@app.local_entrypoint()
def wrong() -> None:
    modal.Image.debian_slim(python_version="3.11").pip_install("iniconfig==999.0").build(app)
