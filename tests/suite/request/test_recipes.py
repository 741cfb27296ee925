"""The rungs for one GPU: what their sizes cost, and a warm-up that follows the number of steps."""

from __future__ import annotations

import pytest

from suite.plan import plan

ONE_GPU = ("recipe=one_gpu", "task=language", "eval=none", "train.lr=1e-3")


@pytest.mark.parametrize(("size", "millions"), [("6m", 6), ("20m", 19), ("60m", 59)])
def test_a_rung_has_so_many_parameters_without_the_embedding(size: str, millions: int) -> None:
    for run in plan([*ONE_GPU, f"size={size}", "model=transformer,mesanet"]):
        blocks = run.cost.parameters - run.interface.vocab_size * run.config.size.d_model
        assert round(blocks / 1e6) == millions
        assert run.config.size.num_heads * run.config.size.head_dim == run.config.size.d_model
        assert run.config.size.mlp_dim == 3 * run.config.size.d_model


def test_a_warm_up_is_a_share_of_the_steps_and_no_other_run_than_the_number() -> None:
    short, long, typed = (
        plan([*ONE_GPU, "size=6m", "model=gla", *more])[0]
        for more in (["train.steps=600"], ["train.steps=2000"], ["train.steps=2000", "train.warmup_steps=100"])
    )
    assert (short.config.train.warmup_steps, long.config.train.warmup_steps) == (30, 100)
    assert typed.run_id == long.run_id != short.run_id
    assert long.config.task.seq_len * long.config.train.batch_size == 65_536 and long.config.train.autocast == "bfloat16"
