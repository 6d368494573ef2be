"""The floors of the house: nothing imports upwards, and `medseg` never imports the apps."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path


def test_import_contracts_hold(root: Path) -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-logo"], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_only_two_folders_may_know_monai_label(root: Path) -> None:
    """The floors are exhaustive by themselves; a contract that forbids has to name whom it binds."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract.get("forbidden_modules") == ["monailabel"])
    entries = (root / "lib" / "medseg").iterdir()
    there = {f"medseg.{path.stem}" for path in entries if path.suffix == ".py" or (path / "__init__.py").exists()}
    free = {"medseg.server", "medseg.simulation", "medseg.__init__", "medseg.__main__"}
    assert set(contract["source_modules"]) == there - free


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
