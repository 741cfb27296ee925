"""Writing a checkpoint beside the training: tensors are copied to the host, and a thread writes the copies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from suite.store.lock import Superseded

Outcome = str | Superseded
"""Why something was not written, "" where it was."""


class Copies:
    """Copies on the host. A GPU's go to pinned memory, which the next ones of the same names and sizes use again."""

    def __init__(self) -> None:
        self._pinned: dict[str, Tensor] = {}

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the tensors as they are now. Those made before are overwritten, so they have to be written by then."""
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        if self._pinned:
            torch.cuda.synchronize()
        return copies

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu":
            return tensor.clone(memory_format=torch.contiguous_format)
        if name not in self._pinned or self._pinned[name].shape != tensor.shape:
            self._pinned[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return self._pinned[name].copy_(tensor, non_blocking=True)


class Beside:
    """One thing at a time that a thread does while training goes on."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None

    def begin(self, write: Callable[[], Outcome]) -> None:
        """Nothing else may be under way."""
        assert self._thread is None, "something is being written"

        def run() -> None:
            self._outcome = write()

        # A daemon: a process that is told to end does not wait for ranks that have ended already.
        self._thread = threading.Thread(target=run, daemon=True)
        self._outcome = None
        self._thread.start()

    def ended(self) -> Outcome:
        """How what is under way ends, waited for; "" where nothing is. Raises Superseded."""
        if self._thread is None:
            return ""
        self._thread.join()
        self._thread = None
        # What a fault of ours raised in the thread stands above, with its traceback.
        assert self._outcome is not None, "a checkpoint's writer has failed"
        if isinstance(self._outcome, Superseded):
            raise self._outcome
        return self._outcome
