"""Arms are made equal in one cost, or in two at the same time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import pytest

from conf.groups import whole
from conf.settings import RequestError
from suite.plan import plan, planned_task
from suite.request.compose import Composer
from suite.request.cost import model_cost
from suite.request.match import _head_sizes, _splits
from tests.models import built

MESA_AND_RIVALS = "model=mesanet,gated_deltanet,triadic_gdn,momentum_deltanet"
BOTH = ["match.by=state_and_parameters", "match.reference=mesanet", "task=mqar", "eval=none"]


def every_split(num_heads: int, head_dim: int) -> list[dict[str, int]]:
    """Half to twice the heads of up to four times the size, those that change least first."""
    counts = sorted({num_heads, num_heads // 2, 2 * num_heads}, key=lambda n: (n != num_heads, n))
    dims = sorted(range(2, 4 * head_dim + 1, 2), key=lambda dim: abs(dim - head_dim))
    return [{"num_heads": n, "head_dim": dim} for n, dim in itertools.product(counts, dims)]


def matrices(sizes: Mapping[str, int]) -> float:
    return 4.0 * sizes["num_heads"] * sizes["head_dim"] ** 2


def matrices_in_steps(sizes: Mapping[str, int]) -> float:
    """As of kernels that round a head up to a multiple of 8."""
    return 4.0 * sizes["num_heads"] * (-(-sizes["head_dim"] // 8) * 8) ** 2


def constant(sizes: Mapping[str, int]) -> float:
    return 1234.0


@pytest.mark.parametrize("head_dim", [6, 7, 32])
@pytest.mark.parametrize("measure", [matrices, matrices_in_steps, constant])
def test_of_all_splits_of_a_state_the_nearest_is_found(measure: Callable[[Mapping[str, int]], float], head_dim: int) -> None:
    size = built.size(d_model=8, mlp_dim=8, num_heads=4, head_dim=head_dim)
    for target in (1.0, 100.0, 1234.0, 4.0 * 4 * head_dim**2, 4.0 * 4 * (1.5 * head_dim) ** 2, 1e9):
        offered = _splits(size, target, measure)
        nearest = min(abs(measure(each) - target) for each in every_split(4, head_dim))
        assert min(abs(measure(each) - target) for each in offered) == nearest


def test_a_state_that_heads_do_not_change_keeps_its_heads() -> None:
    size = built.size(d_model=8, mlp_dim=8, num_heads=4, head_dim=32)
    assert _splits(size, 99.0, constant)[0] == _head_sizes(size, 99.0, constant)[0] == {"num_heads": 4, "head_dim": 32}


def test_matching_a_state_asks_for_few_of_the_sizes() -> None:
    asked = []
    size = built.size(d_model=8, mlp_dim=8, num_heads=8, head_dim=128)
    _splits(size, 1e6, lambda sizes: asked.append(sizes) or matrices(sizes))
    assert len(every_split(8, 128)) == 768 and len(asked) <= 27


@pytest.mark.parametrize("model", whole("model"))
def test_larger_heads_never_have_a_smaller_state(model: str) -> None:
    cell = [f"model={model}", "task=mqar", "backend=torch"]
    composer = Composer([cell])
    configs = [composer.compose(cell, {"head_dim": head_dim}).config for head_dim in (2, 4, 14, 16, 18, 32, 34, 64)]
    task, _ = planned_task(configs[0].task)
    states = [model_cost(config, interface=task.interface).state_bytes for config in configs]
    assert states == sorted(states)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_state_and_parameters_are_matched_at_the_same_time(size: str) -> None:
    reference, *others = plan([MESA_AND_RIVALS, f"size={size}", *BOTH, "match.tolerance=0.05"])
    assert [run.config.size.head_dim for run in (reference, *others)] == [32, 44, 32, 32]
    for run in others:
        assert run.config.size.num_heads == reference.config.size.num_heads
        assert abs(run.cost.state_bytes / reference.cost.state_bytes - 1) <= 0.05
        # A column of the MLP more or less is the least step.
        assert abs(run.cost.parameters / reference.cost.parameters - 1) <= 0.002


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model=triadic_gdn"], "the nearest that triadic_gdn comes to 35,840 state_bytes is off by 4.8 %"),
        (["model=gated_deltanet", "size.mlp_dim=8"], "gated_deltanet with heads of 44 can't reach"),
        (["model=gated_deltanet", "match.tolerance=0.01"], "gated_deltanet comes to 35,840 state_bytes is off by 1.8 %"),
    ],
)
def test_what_both_can_not_reach_is_refused_in_a_line(arguments: list[str], said: str) -> None:
    with pytest.raises(RequestError, match="^match.by=state_and_parameters: ") as caught:
        plan([*arguments, *BOTH])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_says_what_it_was_matched_by() -> None:
    (run,) = plan(["model=gated_deltanet", *BOTH, "match.tolerance=0.05"])
    told = {key: run.facts[key] for key in ("matched_by", "match_reference", "match_tolerance")}
    assert told == {"matched_by": "state_and_parameters", "match_reference": "mesanet", "match_tolerance": 0.05}
    # A reference that was matched to itself is the run that it is without.
    by_name = [plan(["model=mesanet", "task=mqar", "eval=none", *more])[0].run_id for more in ([], BOTH[:2])]
    assert by_name[0] == by_name[1]
