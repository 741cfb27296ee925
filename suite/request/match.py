"""Makes two arms of a comparison equal in cost by changing the size of one of them.

`parameters` and `flops` choose the width of the MLP, `state` the number of heads and their size. `state_and_parameters`
chooses the size of the heads by the state, and then the width of the MLP by the parameters, on which no state depends.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from dataclasses import replace

import msgspec

from conf.settings import RequestError
from models.build import Size
from suite.compute.interface import Interface
from suite.request.cost import Cost, model_cost
from suite.request.schema import Composed

# From WIDE on a width is a multiple of ALIGNED, which moves no budget by more than 0.4 %: a GPU is several times slower at
# products of bfloat16 rows that do not begin at 16 bytes, and an arm would be slow for how it was matched. Narrower widths
# stay exact, since rounding would move them further.
WIDE, ALIGNED = 1024, 8
Sizes = Mapping[str, int]
"""Values of `size`, such as {"mlp_dim": 378}."""
Measure = Callable[[Sizes], float]
"""What one field of `Cost` is at these sizes."""


def match(composed: Composed, reference: Cost, *, interface: Interface, resized: Callable[[Sizes], Composed]) -> Sizes:
    """The values of `size` by which the quantities of `match.by` agree with the reference's within `match.tolerance`.

    resized: the cell with other values of `size`, which reach its mixers.
    Raises RequestError when nothing in reach agrees, naming the nearest that does.
    """

    def cost(sizes: Sizes) -> Cost:
        return model_cost(replace(resized(sizes).config, backend=composed.config.backend), interface=interface)

    chosen: Sizes = {}
    for quantity, search in SEARCHES[composed.match.by]:
        target = float(getattr(reference, quantity))
        chosen = _matched(composed, quantity, target, search=search, chosen=chosen, cost=cost)
    return chosen


def _matched(
    composed: Composed, quantity: str, target: float, *, search: Search, chosen: Sizes, cost: Callable[[Sizes], Cost]
) -> Sizes:
    """The sizes that were chosen already, and beside them those by which the quantity is nearest to the target."""
    by, tolerance, name = composed.match.by, composed.match.tolerance, composed.config.model.name
    if chosen:
        name += f" with heads of {chosen['head_dim']}"

    def measure(sizes: Sizes) -> float:
        return float(getattr(cost({**chosen, **sizes}), quantity))

    candidates = search(composed.config.size, target, measure)
    if not candidates:
        raise RequestError(f"match.by={by}: {name} can't reach {target:,.0f} {quantity} with an MLP of any width")
    errors = [abs(measure(candidate) / target - 1.0) for candidate in candidates]
    nearest = min(range(len(errors)), key=errors.__getitem__)
    if errors[nearest] > tolerance:
        raise RequestError(
            f"match.by={by}: the nearest that {name} comes to {target:,.0f} {quantity} is off by "
            f"{100 * errors[nearest]:.1f} %, permitted is match.tolerance={tolerance}"
        )
    return {**chosen, **candidates[nearest]}


def _widths(size: Size, target: float, measure: Measure) -> list[Sizes]:
    """The MLP width that meets the target, if any does: parameters and FLOPs are linear in it."""
    narrow, wide = (measure({"mlp_dim": width}) for width in (1, 2))
    above_one = (target - narrow) / (wide - narrow)
    width = 1 + round(above_one)
    if width >= WIDE:
        width = ALIGNED * round((1 + above_one) / ALIGNED)
    return [{"mlp_dim": width}] if width >= 1 else []


def _head_sizes(size: Size, target: float, measure: Measure) -> list[Sizes]:
    """The sizes of the present number of heads whose states are just below and just above the target, and the present size.

    No other is nearer to the target, since larger heads never have a smaller state. The present size, which comes first where
    several are as near, is the one for a state that does not depend on it.
    """
    # RoPE turns pairs, and gates in blocks must divide the width.
    sizes = [{"num_heads": size.num_heads, "head_dim": head_dim} for head_dim in range(2, 4 * size.head_dim + 1, 2)]
    above = bisect.bisect_left(sizes, target, key=measure)
    by_change = sorted(sizes, key=lambda each: abs(each["head_dim"] - size.head_dim))
    return [by_change[0], *sorted(sizes[max(0, above - 1) : above + 1], key=by_change.index)]


def _splits(size: Size, target: float, measure: Measure) -> list[Sizes]:
    """The same of half as many heads, of twice as many and first of the present number."""
    heads = size.num_heads
    counts = sorted({heads, max(1, heads // 2), 2 * heads}, key=lambda n: (n != heads, n))
    return [each for n in counts for each in _head_sizes(msgspec.structs.replace(size, num_heads=n), target, measure)]


Search = Callable[[Size, float, Measure], list[Sizes]]
# What arms can be matched by: the fields of `Cost` that are made equal one after the other, each with the sizes that are tried.
SEARCHES: dict[str, tuple[tuple[str, Search], ...]] = {
    "parameters": (("parameters", _widths),),
    "flops": (("flops_per_token", _widths),),
    "state": (("state_bytes", _splits),),
    "state_and_parameters": (("state_bytes", _head_sizes), ("parameters", _widths)),
}
