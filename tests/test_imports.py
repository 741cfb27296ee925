"""Who may import whom (read from the import statements; nothing is run)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "tasks", "suite", "reports")
FOREIGN = {
    "models": {"tasks", "suite", "reports"},
    "tasks": {"models", "suite", "reports"},
    "suite": set(),
    "reports": {"models", "tasks", "torch", "suite"},
}
ALLOWED_TO_REPORTS = {"suite.results", "suite.metrics"}
ONE_PLACE = {"fla": "models/backends/fla", "mamba_ssm": "models/backends/mamba_ssm.py", "lm_eval": "suite/lm_eval"}
ONE_PLACE |= {"datasets": ("tasks/offline/data.py", "suite/lm_eval")}


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, lazily or not."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_what_its_package_may(path):
    package = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        top = name.split(".")[0]
        assert top not in FOREIGN[package] or (package == "reports" and name in ALLOWED_TO_REPORTS), name
        if top in ONE_PLACE:
            assert str(path.relative_to(ROOT)).startswith(ONE_PLACE[top]), f"{top} belongs in {ONE_PLACE[top]}"


@pytest.mark.parametrize("module", ["suite.results", "suite.metrics", "reports.build", "reports.parts"])
def test_reading_results_needs_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
