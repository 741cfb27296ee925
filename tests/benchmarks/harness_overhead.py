"""The share of a quick run's training that is spent outside forward, backward and optimiser.

    python -m tests.benchmarks.harness_overhead

Trains one fast model, on which the harness weighs most, on both quick tasks in a store that is thrown away.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from suite.cli import main as suite_main
from suite.results import load_results

ASKED = 0.05


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        request = ["experiment=quick", "model=transformer", "compute.jobs=1", "eval=none", f"paths.results={folder}"]
        assert suite_main(["run", *request]) == 0
        results = load_results(Path(folder))
    for row in results[results["metric"] == "overhead"].itertuples():
        share = f"{100 * row.value:.1f} %"
        print(f"{row.model} {row.task}: {share} outside forward, backward and optimiser (asked: under {100 * ASKED:.0f} %)")


if __name__ == "__main__":
    main()
