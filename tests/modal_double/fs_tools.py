"""The program the client expects in every Sandbox for its filesystem API. Standard library only; runs inside.

`argv[1]` is one JSON command, as built by the client. Contents go through stdin and stdout; an error is one JSON
object on stderr and exit status 1.
"""

import errno
import json
import os
import shutil
import stat
import sys
from typing import Any

_KINDS = {
    errno.ENOENT: "NotFound",
    errno.EISDIR: "IsDirectory",
    errno.ENOTDIR: "NotDirectory",
    errno.EACCES: "PermissionDenied",
    errno.EPERM: "PermissionDenied",
    errno.EROFS: "PermissionDenied",
    errno.ENOTEMPTY: "DirectoryNotEmpty",
}


def describe(path: str, name: str) -> dict[str, Any]:
    info = os.lstat(path)
    kind = "file"
    if stat.S_ISLNK(info.st_mode):
        kind = "symlink"
    elif stat.S_ISDIR(info.st_mode):
        kind = "directory"
    return {
        "name": name,
        "path": path,
        "type": kind,
        "size": info.st_size,
        "mode": stat.S_IMODE(info.st_mode),
        "permissions": stat.filemode(info.st_mode)[1:],
        "owner": str(info.st_uid),
        "group": str(info.st_gid),
        "modified_time": info.st_mtime,
        "symlink_target": os.readlink(path) if kind == "symlink" else None,
    }


def run(name: str, args: dict[str, Any]) -> None:
    path = args["path"]
    match name:
        case "WriteFile":
            os.makedirs(os.path.dirname(path) or "/", exist_ok=True)
            with open(path, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        case "ReadFile":
            with open(path, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
        case "ListFiles":
            print(json.dumps([describe(os.path.join(path, entry), entry) for entry in sorted(os.listdir(path))]))
        case "Stat":
            print(json.dumps(describe(path, os.path.basename(path))))
        case "MakeDirectory":
            if args["parents"]:
                os.makedirs(path, exist_ok=True)
            else:
                os.mkdir(path)
        case "Remove":
            if not os.path.isdir(path) or os.path.islink(path):
                os.unlink(path)
            elif args["recursive"]:
                shutil.rmtree(path)
            else:
                os.rmdir(path)
        case _:
            fail("NotSupported", f"{name} is not supported by the double")


def fail(kind: str, message: str) -> None:
    print(json.dumps({"error_kind": kind, "message": message}), file=sys.stderr)
    sys.exit(1)


def main() -> None:
    [(name, args)] = json.loads(sys.argv[1]).items()
    try:
        run(name, args)
        sys.stdout.flush()
    except FileExistsError:
        fail("PathAlreadyExists" if name == "MakeDirectory" else "AlreadyExists", "File exists")
    except OSError as exc:
        fail(_KINDS.get(exc.errno or 0, "Other"), exc.strerror or str(exc))


if __name__ == "__main__":
    main()
