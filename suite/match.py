"""Makes two arms of a comparison equal in one cost by changing the size of one of them.

`parameters` and `flops` choose the width of the MLP, `state` the number of heads and their size.
"""

from __future__ import annotations

from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf

from suite.cost import model_cost
from suite.interface import Interface
from suite.request import RequestError

# From WIDE on a width is a multiple of ALIGNED, which moves no budget by more than 0.4 %: a GPU is several times slower at
# products of bfloat16 rows that do not begin at 16 bytes, and an arm would be slow for how it was matched. Narrower widths
# stay exact, since rounding would move them further.
WIDE, ALIGNED = 1024, 8
QUANTITIES = {"parameters": "parameters", "flops": "flops_per_token", "state": "state_bytes"}


def match(config: DictConfig, reference: DictConfig, *, interface: Interface) -> DictConfig:
    """The configuration, resized so that `config.match.by` agrees with the reference's within `config.match.tolerance`.

    config, reference: settled but unresolved, so that a change of `size` reaches the mixers.
    Raises RequestError when nothing in reach agrees, naming the nearest that does.
    """
    by, tolerance = config.match.by, config.match.tolerance
    target = _quantity(reference, by, interface)
    candidates = _heads(config) if by == "state" else _widths(config, by, target, interface)
    sized = [(abs(_quantity(candidate, by, interface) / target - 1.0), i, candidate) for i, candidate in enumerate(candidates)]
    if not sized:
        raise RequestError(
            f"match.by={by}: {config.model.name} can't reach {target:,.0f} {QUANTITIES[by]} with an MLP of any width"
        )
    error, _, nearest = min(sized, key=lambda row: row[:2])
    if error > tolerance:
        raise RequestError(
            f"match.by={by}: the nearest that {config.model.name} comes to {target:,.0f} {QUANTITIES[by]} is off by "
            f"{100 * error:.1f} %, permitted is match.tolerance={tolerance}"
        )
    return nearest


def _quantity(config: DictConfig, by: str, interface: Interface) -> float:
    return float(getattr(model_cost(OmegaConf.to_container(config, resolve=True), interface=interface), QUANTITIES[by]))


def _resized(config: DictConfig, size: dict[str, int]) -> DictConfig:
    return OmegaConf.merge(config, {"size": size})


def _widths(config: DictConfig, by: str, target: float, interface: Interface) -> list[DictConfig]:
    """The MLP width that meets the target: both costs are linear in it."""
    narrow, wide = (_quantity(_resized(config, {"mlp_dim": width}), by, interface) for width in (1, 2))
    above_one = (target - narrow) / (wide - narrow)
    width = 1 + round(above_one)
    if width >= WIDE:
        width = ALIGNED * round((1 + above_one) / ALIGNED)
    return [_resized(config, {"mlp_dim": width})] if width >= 1 else []


def _heads(config: DictConfig) -> Iterable[DictConfig]:
    """Every split of the state near the present one, the present number of heads first."""
    heads = config.size.num_heads
    counts = sorted({heads, max(1, heads // 2), 2 * heads}, key=lambda n: (n != heads, n))
    for num_heads in counts:
        for head_dim in sorted(range(1, 4 * config.size.head_dim + 1), key=lambda d: abs(d - config.size.head_dim)):
            # RoPE turns pairs, and gates in blocks must divide the width.
            if head_dim % 2 == 0:
                yield _resized(config, {"num_heads": num_heads, "head_dim": head_dim})
