import base64
import json
import urllib.parse

import pytest

from sandbox_image.redact import REDACTED, Redactor, fits_header

KEY = 'sk-a/b+c"d\\e~0123'


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"Bearer {KEY}, and {KEY} again",
        json.dumps({"key": KEY}),
        urllib.parse.quote(KEY, safe=""),
        *(base64.b64encode(b"x" * before + KEY.encode() + b"yy").decode() for before in range(4)),
        base64.urlsafe_b64encode(f"user:{KEY}".encode()).decode(),
    ],
)
def test_a_secret_is_replaced_in_every_form(text):
    redacted = Redactor(KEY)(text)
    assert REDACTED in redacted
    for part in (KEY[:12], KEY[-12:], base64.b64encode(KEY.encode()).decode()[:16]):
        assert part not in redacted


def test_several_secrets_are_replaced():
    assert Redactor(KEY, "token-0123456789")(f"{KEY} token-0123456789 else") == f"{REDACTED} {REDACTED} else"


@pytest.mark.parametrize("secret", ["", "a", "none", "ollama", "lm-studio"])
def test_a_short_word_is_no_secret(secret):
    text = "none of us has a llama: ollama, lm-studio"
    assert Redactor(secret)(text) == text


@pytest.mark.parametrize(
    ("key", "fits"), [("sk-1", True), ("", False), ("sk-ключ", False), ("sk\n1", False), ("sk\x00", False)]
)
def test_a_header_carries_printable_ascii(key, fits):
    assert fits_header(key) is fits
