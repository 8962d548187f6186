"""What of this machine's files a confined REPL sees: the system's programs, Python, the driver. All read only."""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import rlm.local.confined
import sandbox_image

# Not /usr as a whole, nor /etc: what else is in them may be somebody's.
SYSTEM = (
    *("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/libexec", "/usr/share"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/mime.types"),
    *("/etc/localtime", "/etc/timezone", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"),
    *("/nix/store", "/gnu/store"),
)
SHARED_PREFIXES = ("/usr", "/usr/local")  # more than Python is in their lib
TOP = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # symlinks into /usr on most systems


def symlinks() -> list[tuple[str, str]]:
    """The symlinks (path, target) at the top of the file system."""
    return [(path, str(Path(path).readlink())) for path in TOP if Path(path).is_symlink()]


@functools.cache
def shown() -> tuple[str, ...]:
    """The paths to be shown, parents first, none within another."""
    top = [path for path in TOP if not Path(path).is_symlink()]
    through_links = tuple(f"{path}/" for path, _ in symlinks())
    found: list[str] = []
    for path in sorted({path for path in (*SYSTEM, *top, *_python(), *_own()) if os.path.exists(path)}):  # noqa: PTH110
        if not path.startswith((*through_links, *(f"{outer}/" for outer in found))):
            found.append(path)
    return tuple(found)


def _python() -> Iterator[str]:
    """The interpreter, its standard library and its packages: by the paths it knows them by, and the real ones."""
    yield from _with_real(_hops(Path(sys.executable)))
    for prefix in {sys.base_prefix, sys.base_exec_prefix}:
        if prefix in SHARED_PREFIXES:
            yield from map(str, Path(prefix).glob("lib*/libpython*"))
        else:
            yield from _with_real(f"{prefix}/{name}" for name in ("bin", "lib", "lib64", "share/zoneinfo"))
    named = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts"))
    yield from _with_real([*named, *site.getsitepackages(), f"{sys.prefix}/pyvenv.cfg"])


def _own() -> Iterator[str]:
    """The driver, and what confines it."""
    confined = Path(rlm.local.confined.__file__).parent
    packages = [confined.parent / "__init__.py", confined.parent.parent / "__init__.py"]
    return map(str, [confined, *packages, Path(sandbox_image.__file__).parent])


def _hops(path: Path) -> Iterator[str]:
    """The file, and each that its symlinks lead over."""
    while True:
        yield str(path)
        if not path.is_symlink():
            return
        path = Path(os.path.normpath(path.parent / path.readlink()))


def _with_real(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        yield path
        yield os.path.realpath(path)
