"""The harness: configuration -> run -> train -> evaluate -> result.

In Python: `suite.run("model=mesanet,gla", "task=mqar")` makes runs, `suite.load_results("results")` reads all that a store
holds, `suite.report(...)` draws a page, and `suite.load_model(run_id)` gives a trained model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suite.calls import TrainedModel, load_model, report, run
    from suite.results import load_curves, load_examples, load_results, load_runs

__all__ = [
    "TrainedModel",
    "__version__",
    "load_curves",
    "load_examples",
    "load_model",
    "load_results",
    "load_runs",
    "report",
    "run",
]

# torch takes seconds to import, and whoever only reads results does without it.
_PLACES = {
    **dict.fromkeys(("TrainedModel", "load_model", "report", "run"), "suite.calls"),
    **dict.fromkeys(("load_curves", "load_examples", "load_results", "load_runs"), "suite.results"),
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name == "__version__":
        from suite.machine.environment import package_versions

        return package_versions()["linear-rnn-suite"] or "unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
