"""The program that a REPL's process runs: it confines itself as its host has planned, then runs the driver."""

from __future__ import annotations

import os
import sys

sys.path.append(os.path.abspath(f"{__file__}/../../../.."))

from rlm.local.confined import kernel, landlock, namespaces, seccomp
from rlm.local.confined.plan import Plan


def main() -> None:
    """Raises: OSError when the system does not allow it; no cell has run then."""
    plan = Plan.read(int(sys.argv.pop()))
    if plan.tool == "landlock":
        landlock.enter(plan)
    elif plan.tool == "unshare":
        namespaces.enter(plan)
    elif os.geteuid() == 0:
        namespaces.protect_devices("", (*namespaces.DEVICES, "tty"))  # bwrap does not
    kernel.drop_privileges()
    if seccomp.can_filter():
        seccomp.install(namespaces=plan.tool != "landlock")
    with open(plan.driver, "rb") as file:
        code = compile(file.read(), plan.driver, "exec")
    exec(code, {"__name__": "__main__", "__file__": plan.driver})  # noqa: S102  # it is to be __main__


main()
