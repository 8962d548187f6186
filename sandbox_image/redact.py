"""Keys and tokens: what can be one, and how none leaves the process that holds it."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Iterator

MIN_SECRET_CHARS = 12  # a shorter one is no real key ("none", "ollama"), and stands in texts by chance
REDACTED = "[redacted]"


class Redactor:
    """Replaces the secrets in a text, also as they stand in URLs, in JSON and in base64."""

    def __init__(self, *secrets: str) -> None:
        forms = {form for secret in secrets if len(secret) >= MIN_SECRET_CHARS for form in _forms(secret)}
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """`text` without them."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, REDACTED)
        return text


def fits_header(key: str) -> bool:
    """Whether an HTTP header can carry the key."""
    return bool(key) and key.isascii() and key.isprintable()


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield urllib.parse.quote(secret, safe="")
    yield json.dumps(secret)[1:-1]
    data = secret.encode("utf-8", "surrogatepass")
    for before in range(3):  # base64 goes by groups of three bytes: only what lies within ours is the same everywhere
        encoded = base64.b64encode(b"\0" * before + data)
        whole = encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
        yield whole.decode()
        yield whole.decode().translate(str.maketrans("+/", "-_"))
