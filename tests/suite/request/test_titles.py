"""What runs are called where people watch them, and what a request is said to be made of."""

from __future__ import annotations

import pytest

from suite.plan import plan
from suite.request.titles import axes

MQAR = ("task=mqar", "size=tiny")


def title(*request: str) -> str:
    return plan([*MQAR, *request])[-1].title


@pytest.mark.parametrize(
    "request_, told, made_of",
    [
        (["model=gla"], "gla tiny mqar seed 0", ""),
        (["model=mesanet,gla"], "gla tiny mqar seed 0", "2 models"),
        (["model=gla", "seed=0,1"], "gla tiny mqar seed 1", "2 seeds"),
        (
            ["model=gla,mesanet", "train.lr=1e-3,4e-3"],
            "mesanet tiny mqar seed 0, learning rate 0.004",
            "2 models x 2 learning rates",
        ),
        (
            ["model=mesanet", "model.mixer.solver.max_steps=5,9"],
            "mesanet tiny mqar seed 0, solver steps 9",
            "2 values of solver steps",
        ),
        # What a mixer takes over from the size is not told again.
        (["model=gla,hawk", "size.head_dim=16,32"], "hawk tiny mqar seed 0, head size 32", "2 models x 2 head sizes"),
        (
            ["model=gla", "size.head_dim=16,32", "model.mixer.key_dim=8,16"],
            "gla tiny mqar seed 0, head size 32, key dim 16",
            "2 head sizes x 2 key dims",
        ),
        # In the order in which settings are declared, in every process.
        (
            [
                "model=mesanet",
                "model.mixer.solver.max_steps=5,9",
                "model.mixer.solver.name=cg,chebyshev",
                "model.mixer.solver.initial=zero,diagonal",
                "model.mixer.convolution=none,input",
                "model.mixer.key_dim=8,16",
            ],
            "mesanet tiny mqar seed 0, key dim 16, input convolution, chebyshev solver, solver steps 9, diagonal initial",
            "2 key dims x 2 convolutions x 2 solvers x 2 values of solver steps x 2 initials",
        ),
        # Each of several mixers has its name.
        (
            ["model=kda_hybrid", "model.mixer.num_heads=1,2", "model.attention.num_heads=1,2"],
            "kda_hybrid tiny mqar seed 0, num heads 2, attention num heads 2",
            "2 values of num heads x 2 values of attention num heads",
        ),
        (
            ["model=hawk_mesa", "model.mesa.solver.name=cg,chebyshev", "model.mesa.random_steps=4,null"],
            "hawk_mesa tiny mqar seed 0, chebyshev mesa solver, mesa steps not random",
            "2 mesa solvers x 2 values of mesa random steps up to",
        ),
        (["model=gla", "task=mqar,parity"], "gla tiny parity seed 0", "2 tasks"),
        (
            ["model=gla", "train.lr=1e-3,2e-3", "seed=0,1,2"],
            "gla tiny mqar seed 2, learning rate 0.002",
            "2 learning rates x 3 seeds",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_title_says_what_varies_and_nothing_else(request_, told, made_of):
    runs = plan([*(each for each in MQAR if not any(own.startswith("task=") for own in request_)), *request_])
    assert runs[-1].title == told
    assert axes([run.config for run in runs]) == made_of


def test_what_differs_from_model_to_model_alone_is_no_part_of_a_title():
    """Two models that are matched have other sizes, and each has a learning rate of its own."""
    assert title("model=gla,mesanet", "match.by=parameters").endswith("seed 0")


def test_axes_that_are_not_combined_are_listed():
    runs = plan([*MQAR, "model=gla,mesanet", "train.lr=1e-3,2e-3"])[:3]
    assert axes([run.config for run in runs]) == "2 models, 2 learning rates"
