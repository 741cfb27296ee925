"""Makes two arms of a comparison equal in one cost by changing the size of one of them.

`parameters` and `flops` choose the width of the MLP, `state` the number of heads and their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from conf.settings import RequestError
from models.build import Size
from suite.compute.interface import Interface
from suite.request.cost import Cost, model_cost
from suite.request.schema import Composed

# From WIDE on a width is a multiple of ALIGNED, which moves no budget by more than 0.4 %: a GPU is several times slower at
# products of bfloat16 rows that do not begin at 16 bytes, and an arm would be slow for how it was matched. Narrower widths
# stay exact, since rounding would move them further.
WIDE, ALIGNED = 1024, 8
# What arms can be matched by, each with the field of `Cost` that is made equal.
QUANTITIES = {"parameters": "parameters", "flops": "flops_per_token", "state": "state_bytes"}
Resize = Callable[[Mapping[str, int]], Composed]


def match(composed: Composed, reference: Cost, *, interface: Interface, resized: Resize) -> Mapping[str, int]:
    """The values of `size` by which the quantity of `match.by` agrees with the reference's within `match.tolerance`.

    resized: the cell with other values of `size`, which reach its mixers.
    Raises RequestError when nothing in reach agrees, naming the nearest that does.
    """
    by, tolerance, name = composed.match.by, composed.match.tolerance, composed.config.model.name
    target = float(getattr(reference, QUANTITIES[by]))

    def quantity(candidate: Composed) -> float:
        config = replace(candidate.config, backend=composed.config.backend)
        return float(getattr(model_cost(config, interface=interface), QUANTITIES[by]))

    sizes = _heads(composed.config.size) if by == "state" else _widths(target, lambda size: quantity(resized(size)))
    candidates = [(size, resized(size)) for size in sizes]
    if not candidates:
        raise RequestError(f"match.by={by}: {name} can't reach {target:,.0f} {QUANTITIES[by]} with an MLP of any width")
    errors = [abs(quantity(candidate) / target - 1.0) for _, candidate in candidates]
    nearest = min(range(len(errors)), key=errors.__getitem__)
    if errors[nearest] > tolerance:
        raise RequestError(
            f"match.by={by}: the nearest that {name} comes to {target:,.0f} {QUANTITIES[by]} is off by "
            f"{100 * errors[nearest]:.1f} %, permitted is match.tolerance={tolerance}"
        )
    return candidates[nearest][0]


def _widths(target: float, quantity: Callable[[Mapping[str, int]], float]) -> list[dict[str, int]]:
    """The MLP width that meets the target: both costs are linear in it."""
    narrow, wide = (quantity({"mlp_dim": width}) for width in (1, 2))
    above_one = (target - narrow) / (wide - narrow)
    width = 1 + round(above_one)
    if width >= WIDE:
        width = ALIGNED * round((1 + above_one) / ALIGNED)
    return [{"mlp_dim": width}] if width >= 1 else []


def _heads(size: Size) -> Iterable[dict[str, int]]:
    """Every split of the state near the present one, the present number of heads first."""
    heads = size.num_heads
    counts = sorted({heads, max(1, heads // 2), 2 * heads}, key=lambda n: (n != heads, n))
    for num_heads in counts:
        for head_dim in sorted(range(1, 4 * size.head_dim + 1), key=lambda d: abs(d - size.head_dim)):
            # RoPE turns pairs, and gates in blocks must divide the width.
            if head_dim % 2 == 0:
                yield {"num_heads": num_heads, "head_dim": head_dim}
