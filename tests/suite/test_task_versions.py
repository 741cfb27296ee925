"""A task numbers itself where its settings decide, and the number names the run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conf.settings import RequestError
from suite.plan import plan, task_of
from suite.saved import saved_task


def test_a_run_on_few_examples_has_another_name_and_no_other_run_has():
    few = ["task.vocab_size=8", "task.num_pairs=[2]"]
    tiny, usual = (plan(["model=gla", "task=mqar", *own, "eval=none"])[0] for own in (few, []))
    assert (tiny.config.task.version, usual.config.task.version) == (2, 1)
    assert task_of(tiny.config).version == 2


def test_weights_trained_on_other_splits_are_not_scored():
    (run,) = plan(["model=gla", "task=parity", "task.seq_len=8", "task.test_seq_len=8", "eval=none"])
    old = replace(run, config=replace(run.config, task=run.config.task.replace({"version": 1})))
    with pytest.raises(RequestError, match="older version of parity"):
        saved_task(old)
