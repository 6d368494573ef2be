"""The floors of the house: nothing imports upwards, and `medseg` never imports the apps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_import_contracts_hold(root: Path) -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-logo"], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_nothing_in_the_package_imports_the_apps(root: Path) -> None:
    sources = list((root / "lib" / "medseg").rglob("*.py"))
    guilty = [p for p in sources if "import apps" in p.read_text() or "from apps" in p.read_text()]
    assert sources
    assert not guilty


def test_package_imports_without_monailabel(root: Path) -> None:
    """Everything below the server runs on a machine that has torch and MONAI only."""
    code = (
        "import sys; sys.modules['monailabel'] = None\n"
        "import medseg.cli, medseg.benchmark.runner, medseg.training.run, medseg.training.command, "
        "medseg.inference.command, medseg.methods.caml.method, medseg.methods.supervised.method"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
