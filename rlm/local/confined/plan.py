"""What a confined process is told by the host that starts it."""

from __future__ import annotations

import json
import os

MEMORY = "/tmp"  # noqa: S108  # in the REPL: a file system in memory, with its home in it


class Plan:
    """How a driver is confined, by the tool of that name.

    `shown` are pairs of a path of this machine and the path it has in the REPL, parents before what is in them;
    `links` are the symlinks (path, target) that the system has beside them. `root` is an empty folder to build
    upon, `home` the folder where cells run. They can write to it and to MEMORY, which may hold `home_bytes`; without
    namespaces, to their home alone.
    """

    def __init__(  # noqa: PLR0913  # as a dataclass would have it: to import those takes longer than all the rest
        self,
        *,
        tool: str,
        driver: str,
        host_pid: int,
        root: str,
        home: str,
        home_bytes: int,
        shown: list[tuple[str, str]],
        links: list[tuple[str, str]],
    ) -> None:
        self.tool = tool
        self.driver = driver
        self.host_pid = host_pid
        self.root = root
        self.home = home
        self.home_bytes = home_bytes
        self.shown = shown
        self.links = links

    def open(self) -> int:
        """A descriptor from which `read` has the plan. It is the caller's to close."""
        number = os.memfd_create("rlm-plan")
        with os.fdopen(os.dup(number), "w") as file:
            json.dump(vars(self), file)
        os.lseek(number, 0, os.SEEK_SET)
        return number

    @classmethod
    def read(cls, number: int) -> Plan:
        """The plan behind a descriptor, which is then closed."""
        with os.fdopen(number) as file:
            return cls(**json.load(file))
