"""Which recipe a size is meant for, and what a request trains that names the size alone."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from conf.groups import find
from suite.request.length import SPELLINGS
from suite.request.overrides import assignment
from suite.request.schema import Config

MEANT = {"6m": "one_gpu", "20m": "one_gpu", "60m": "one_gpu", "140m": "mesanet_15b", "400m": "mesanet_15b", "1b": "mesanet_15b"}
"""The recipe of each size that is larger than a CPU trains."""
DECIDES = {"recipe", "experiment", "task.seq_len", "train.batch_size", *SPELLINGS}
"""What says how a size is to be trained."""


def hint(cell: Sequence[str], config: Config) -> str | None:
    """A line where a cell names a size without its recipe, None where it says how long is trained or the size is for a CPU."""
    size, task, train = config.size.name, config.task, config.train
    if task.name != "language" or size not in MEANT or any(assignment(each).key in DECIDES for each in cell):
        return None
    recipe = yaml.safe_load(find("recipe", MEANT[size]).read_text(encoding="utf-8"))
    tokens = recipe["train"].get("tokens")
    whole = f", {tokens:,} tokens" if tokens else ""
    return (
        f"size={size} with task=language trains {train.steps * train.batch_size * task.seq_len:,} tokens at T={task.seq_len}; "
        f"recipe={MEANT[size]} is meant for it (T={recipe['task']['seq_len']}, batches of {recipe['train']['batch_size']}{whole})"
    )
