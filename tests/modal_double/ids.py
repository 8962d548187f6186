"""Object ids in the shapes the client tells apart, and unsigned JWTs."""

import base64
import json
import secrets
import string
import time

_ALNUM = string.ascii_letters + string.digits


def new_id(prefix: str) -> str:
    """`fu-…`, `ap-…`, …: 22 alphanumerics, as Modal's."""
    return f"{prefix}-" + "".join(secrets.choice(_ALNUM) for _ in range(22))


def new_sandbox_id() -> str:
    """A V2 Sandbox: the client takes 22 alphanumerics for V1, so this one is longer."""
    return "sb-" + "".join(secrets.choice(_ALNUM) for _ in range(26))


def new_sandbox_task_id() -> str:
    """The task of a V2 Sandbox ends in V."""
    return "ta-" + "".join(secrets.choice(_ALNUM) for _ in range(21)) + "V"


def jwt(subject: str, life_s: float = 3600.0) -> str:
    """A token with an `exp`; the client reads it and nothing verifies a signature."""

    def part(data: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()

    claims = {"sub": subject, "exp": int(time.time() + life_s), "jti": secrets.token_hex(8)}
    return ".".join((part({"alg": "none"}), part(claims), "x"))
