"""What a REPL may take of the machine."""

from __future__ import annotations

import resource


def limit_resources(limits: dict[str, int]) -> None:
    """Bound what this process and its children may take, as far as the system lets us."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        bound = value + (tasks_of_others() if kind == resource.RLIMIT_NPROC else 0)
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def tasks_of_others() -> int:
    """RLIMIT_NPROC counts all that a user runs, so what runs already is to be added, but in a namespace of ours."""
    with open("/proc/self/uid_map") as id_map, open("/proc/loadavg") as load:  # noqa: PTH123
        is_our_namespace = id_map.read().split()[2] != "4294967295"
        return 0 if is_our_namespace else int(load.read().split()[3].partition("/")[2])
