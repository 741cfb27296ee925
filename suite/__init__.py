"""The harness: configuration -> run -> train -> evaluate -> result.

`suite.load_model(run_id)` gives a trained model; `suite.results` reads the store without importing torch.
"""

from __future__ import annotations

from typing import Any

__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and whoever only reads results does without it.
    if name == "load_model":
        from suite.saved import load_model

        return load_model
    if name == "__version__":
        from suite.machine.environment import package_versions

        return package_versions()["linear-rnn-suite"] or "unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
