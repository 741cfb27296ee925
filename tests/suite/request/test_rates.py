"""A model that has no rate for a task and size says which one it takes, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.cli import main


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `check` says beside its plan."""
    capsys.readouterr()
    assert main(["check", *arguments, "eval=none"]) == 0
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["model=gla", "task=mqar", "size=small", "seed=0,1,2"],
            ["gla has no rate for mqar at size small: 5.0e-3, the default of conf/train/mqar.yaml"],
        ),
        (
            ["model=gla,mesanet", "task=mqar,language", "size=tiny,small,1b"],
            [
                "size=1b with task=language trains 512,000 tokens at T=128; "
                "recipe=mesanet_15b is meant for it (T=2048, batches of 256, 15,000,000,000 tokens)",
                "gla, mesanet have no rate for mqar at size small: 5.0e-3, the default of conf/train/mqar.yaml",
                "gla, mesanet have no rate for mqar at size 1b: 5.0e-3, the default of conf/train/mqar.yaml",
            ],
        ),
        # The recipe decides which rate is asked for.
        (
            ["model=gla", "task=mqar", "train=language", "size=small,20m"],
            ["gla has no rate for language at size 20m: 2.0e-3, the default of conf/train/language.yaml"],
        ),
    ],
)
def test_a_default_rate_is_said_once_for_each_task_and_size(
    arguments: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(arguments, capsys) == lines


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=gla", "task=mqar", "size=tiny"],
        ["model=gla", "task=mqar", "size=small", "train.lr=5e-3"],
        ["model=gla", "task=mqar", "size=small", "+model.lr.mqar.small=1e-3"],
        # No model has a rate for it.
        ["model=gla,mesanet", "task=parity", "size=tiny,small"],
        # The experiment says the rate.
        ["experiment=mqar_equal_state", "size=small"],
        # Nothing is trained.
        ["model=gla", "task=efficiency"],
    ],
)
def test_a_rate_that_somebody_gave_is_not_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert said(arguments, capsys) == []


def test_a_model_of_the_users_own_may_be_the_only_one_with_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    tuned = "defaults: [gla, _self_]\nname: tuned_gla\nlr:\n  parity: {tiny: 1.0e-3}\n"
    (tmp_path / "conf" / "model" / "tuned_gla.yaml").write_text(tuned)
    lines = said(["model=gla,tuned_gla", "task=parity", f"extend={tmp_path}"], capsys)
    assert lines == ["gla has no rate for parity at size tiny: 3.0e-3, the default of conf/train/parity.yaml"]
