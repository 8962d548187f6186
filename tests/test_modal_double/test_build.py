"""`--build` installs the pip layers; it needs a package index."""

from pathlib import Path

import pytest

from tests.modal_double import ModalDouble, Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("needs_isolation")]


def test_an_image_has_its_packages_and_no_others(apps: Path, tmp_path: Path) -> None:
    with ModalDouble(Settings(build=True, cache_dir=tmp_path)) as double:
        done = double.cli("run", f"{apps / 'built.py'}::main", timeout_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "has 2.0.0 2.0.0" in done.stdout
        assert "has not No module named 'iniconfig'" in done.stdout
        assert "sandbox ModuleNotFoundError: No module named 'modal'" in done.stdout
        again = double.cli("run", f"{apps / 'built.py'}::main")
        assert again.returncode == 0
        failed = double.cli("run", f"{apps / 'built.py'}::wrong", timeout_s=240)
        assert failed.returncode != 0
        assert "999.0" in failed.stdout + failed.stderr
