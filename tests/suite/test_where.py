"""Runs are chosen and ordered by any of their keys, and what can't be meant is said in one line."""

from __future__ import annotations

import pandas as pd
import pytest

from conf.settings import RequestError
from suite.where import column, order, select

RUNS = pd.DataFrame(
    {
        "run_id": list("abcd"),
        "model": ["gla", "mesanet", "mesanet", "gla"],
        "status": ["done", "done", "diverged", "done"],
        "reason": ["", "", "NLL of 9, too high", ""],
        "lr": [1e-3, 4e-3, 1e-3, 8.0],
        "train.lr": [1e-3, 4e-3, 1e-3, 8.0],
        "train.betas": ["[0.9,0.98]", "[0.9,0.95]", "[0.9,0.98]", "[0.9,0.98]"],
        "size.d_model": [64, 64, 128, 64],
        "size.num_heads": [2, 2, 2, 2],
        "model.mixer.num_heads": [2, 4, 2, 2],
        "model.mixer.window": [None, "9", "15", "full"],
        "model.mixer.normalize": [None, True, False, None],
    }
)
ROWS = pd.DataFrame(
    [
        ("a", "train", "validation", "accuracy", "", 0.5, False),
        ("a", "test", "test", "accuracy", "", 0.6, False),
        ("a", "test", "test", "accuracy", "num_pairs=4", 0.99, False),
        ("b", "train", "validation", "accuracy", "", 0.7, False),
        ("d", "test", "test", "accuracy", "", 0.8, True),
        ("d", "test", "test", "accuracy", "", 0.1, False),
        ("a", "cost", "validation", "parameters", "", 7.0, False),
        ("b", "train", "train", "train_loss", "", 2.0, False),
        ("d", "train", "train", "train_loss", "", 1.0, False),
        ("a", "own", "test", "elegance", "", 3.0, False),
    ],
    columns=["run_id", "stage", "split", "metric", "slice", "value", "superseded"],
)


def chosen(where: str) -> str:
    return "".join(select(RUNS, where, lambda: ROWS)["run_id"])


def ordered(sort: str) -> str:
    return "".join(order(RUNS, sort, lambda: ROWS)["run_id"])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("model=gla", "ad"),
        ("model=gla|mesanet, lr=1e-3", "ac"),
        ("model!=gla", "bc"),
        ("model!=gla|mesanet", ""),
        ("status!=interrupted", "abcd"),
        ("train.lr<=0.0010", "ac"),
        ("lr=8|4e-3", "bd"),
        ("d_model<128", "abd"),
        ("size.d_model=64.0", "abd"),
        ("mixer.num_heads=4", "b"),
        ("train.betas=[0.9,0.95]|[0.9,0.98],model=mesanet", "bc"),
        ("window=full", "d"),
        ("window=null|9", "ab"),
        ("window!=null", "bcd"),
        ("normalize=true", "b"),
        ("normalize=false|null", "acd"),
        ("normalize!=true", "acd"),
        ("reason='NLL of 9, too high'", "c"),
        ("reason=", "abd"),
        ('model="gla"', "ad"),
        ("accuracy>=0.6", "ab"),
        ("accuracy=null", "c"),
        ("train_loss<1.5", "d"),
        ("elegance=3", "a"),
    ],
)
def test_runs_are_chosen_by_what_they_are_and_how_well_they_do(where: str, expected: str) -> None:
    assert chosen(where) == expected


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("modle=gla", r"unknown key 'modle'; did you mean model\?"),
        ("dmodel=64", r"did you mean d_model\?"),
        ("acuracy>0.5", r"did you mean accuracy\?"),
        ("num_heads=2", "'num_heads' is the ending of several, permitted are model.mixer.num_heads, size.num_heads"),
        ("model=gal", "no run has model=gal, there are gla, mesanet$"),
        ("model=gla|gal", "no run has model=gal"),
        ("d_model='64'", "no run has size.d_model='64', there are 64, 128"),
        ("normalize=1", "there are false, null, true"),
        ("model", "none of the operators = != < <= > >="),
        ("model==gla", "none of the operators"),
        ("model=gla,", "nothing before, behind or between some ','"),
        ("model=gla||mesanet", "nothing before, behind or between some '|'"),
        ("model<gla", "model is no number, permitted are = and !="),
        ("normalize>0", "model.mixer.normalize is no number"),
        ("lr<1e-3|2e-3", "'1e-3|2e-3' is no number"),
        ("lr<nan", "'nan' is no number"),
    ],
)
def test_what_no_run_can_be_is_said_in_one_line(where: str, said: str) -> None:
    with pytest.raises(RequestError, match=said.replace("|", r"\|")) as refused:
        chosen(where)
    assert "\n" not in str(refused.value)


def test_at_most_ten_values_are_told() -> None:
    runs = pd.DataFrame({"run_id": [f"{i:x}" for i in range(16)], "train.steps": range(16)})
    with pytest.raises(RequestError, match="there are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 6 more"):
        select(runs, "steps=20", lambda: ROWS)


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("lr", "acbd"),
        ("-lr", "dbac"),
        ("model,-lr", "dabc"),
        ("accuracy", "badc"),
        ("-accuracy", "dabc"),
        ("train_loss", "dbac"),
        ("window", "bcda"),
        ("-window", "dcba"),
    ],
)
def test_runs_stand_in_the_order_of_a_key_with_the_best_first_and_the_missing_last(sort: str, expected: str) -> None:
    assert ordered(sort) == expected


def test_results_are_read_for_a_metric_alone() -> None:
    def unread() -> pd.DataFrame:
        raise AssertionError("nothing asked for results")

    assert len(order(select(RUNS, "d_model=64,status=done", unread), "-train.lr", unread)) == 3
    with pytest.raises(RequestError, match="is the ending of several"):
        column(RUNS, "num_heads", unread)
    assert column(RUNS, "d_model", unread).name == "size.d_model"
