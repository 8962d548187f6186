"""What holds of the whole package: names, errors, start-up, what it imports."""

import ast
import subprocess
import sys
from pathlib import Path

import rlm
from rlm import errors

ROOT = Path(rlm.__file__).parent


def test_every_public_name_is_there():
    for name in rlm.__all__:
        assert getattr(rlm, name).__name__ == name


def test_the_error_tree_is_drawn_as_it_is():
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert kind.__name__ in errors.__doc__
            assert issubclass(kind, errors.RLMError)


def test_importing_the_package_or_its_command_line_imports_nothing_large():
    code = (
        "import sys, rlm, rlm.cli; print([name for name in "
        "('openai', 'fastapi', 'pydantic', 'rich', 'modal', 'aiohttp', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_driver_needs_the_standard_library_alone():
    folder = ROOT.parent / "sandbox_image"
    needed, seen = ["driver"], set()
    while needed:
        name = needed.pop()
        seen.add(name)
        modules = set()
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            modules |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            modules |= {node.module} if isinstance(node, ast.ImportFrom) else set()
        assert {module.split(".")[0] for module in modules} <= {*sys.stdlib_module_names, "sandbox_image"}
        ours = {module.split(".")[1] for module in modules if module.startswith("sandbox_image.")}
        needed += ours - seen
    assert {"calls", "clock", "finals"} <= seen
