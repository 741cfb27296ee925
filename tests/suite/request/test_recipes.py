"""Recipes: the rungs for one GPU, MesaNet's tokens, batches and rates, and which recipe a size is meant for."""

from __future__ import annotations

import pytest
import yaml

from conf.groups import CONF
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


# MesaNet (arXiv 2506.05233), Table 8.
TABLE_8 = {
    ("mesanet_15b", "140m"): {"mesanet": 3.0e-3, "transformer": 2.5e-3, "gated_deltanet": 1.0e-3, "hawk": 2.0e-3},
    ("mesanet_15b", "1b"): {"mesanet": 2.0e-3, "transformer": 2.0e-3, "deltanet": 1.5e-3, "mlstm": 1.5e-3},
    ("mesanet_50b", "140m"): {"mesanet": 9.5e-4, "transformer": 3.0e-3, "gla": 1.0e-3},
    ("mesanet_50b", "400m"): {"mesanet": 1.0e-3, "deltanet": 8.5e-4, "gla": 9.5e-4, "mlstm": 9.0e-4, "swa64": 1.0e-3},
    ("mesanet_50b", "1b"): {"mesanet": 8.5e-4, "hawk_mesa": 8.5e-4, "mamba2": 9.0e-4, "gated_deltanet": 9.0e-4},
}


@pytest.mark.parametrize(("recipe", "size"), TABLE_8)
def test_a_recipe_of_mesanet_has_its_tokens_and_the_rates_of_its_table(recipe: str, size: str) -> None:
    rates = TABLE_8[recipe, size]
    runs = plan([f"recipe={recipe}", f"size={size}", f"model={','.join(rates)}", "task=language", "eval=none"])
    assert {run.config.model.name: run.config.train.lr for run in runs} == rates
    for run in runs:
        train = run.config.train
        assert run.config.task.seq_len * train.batch_size == 524_288
        assert train.steps == {"mesanet_15b": 28_611, "mesanet_50b": 95_368}[recipe] and train.warmup_steps == 2000
        assert (train.autocast, train.gradient_clip, train.betas, train.schedule) == ("bfloat16", 1.0, (0.9, 0.98), "cosine")


def test_every_model_that_has_rates_has_them_for_the_papers_sizes_and_tokens() -> None:
    # The files of this checkout alone: another test may have added some.
    for path in sorted((CONF / "model").glob("*.yaml")):
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        for table in ("language", "language_50b") if "lr" in written else ():
            assert {"140m", "400m", "1b"} <= written["lr"][table].keys(), (path.name, table)


def test_another_name_of_a_size_is_the_same_run() -> None:
    one, other = (plan([f"size={size}", "model=gla", "eval=none"])[0] for size in ("140m", "145m"))
    assert one.run_id == other.run_id and one.written == other.written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["size=400m"],
            "size=400m with task=language trains 512,000 tokens at T=128; "
            "recipe=mesanet_15b is meant for it (T=2048, batches of 256, 15,000,000,000 tokens)",
        ),
        (
            ["size=6m,6m", "train.lr=1e-3"],
            "size=6m with task=language trains 512,000 tokens at T=128; recipe=one_gpu is meant for it (T=2048, batches of 32)",
        ),
        (["size=400m", "recipe=mesanet_50b"], ""),
        (["size=400m", "train.tokens=1e6"], ""),
        (["size=400m", "task.seq_len=2048"], ""),
        (["size=400m", "task=mqar", "train.lr=1e-3"], ""),
        (["size=tiny"], ""),
    ],
)
def test_a_size_without_its_recipe_says_what_it_trains(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(["model=gla", "eval=none", *arguments])
    assert capsys.readouterr().err == (f"{said}\n" if said else "")


def test_a_rate_that_no_table_has_is_said_to_be_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    plan(["model=gla", "size=small", "recipe=mesanet_50b", "eval=none"])
    assert capsys.readouterr().err == "gla has no rate for language_50b at size small: 1.0e-3, the default of the recipe\n"
