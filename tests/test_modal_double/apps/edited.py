"""Served, and edited by the test while it is."""

import modal

app = modal.App("edited")


@app.function()
@modal.asgi_app()
def web():
    async def asgi(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"version 1"})

    return asgi
