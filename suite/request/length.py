"""How long a run trains: train.steps, or train.tokens or train.flops in their place, settled into steps before the run is named.

Two spellings of one length are one run. Tokens are settled by what a step sees, FLOPs by what the matched model costs:

    steps = ceil(tokens / (batch_size seq_len))          the first step by which so many tokens were seen
    steps = round(flops / (3 F batch_size seq_len))      the nearest, and at least one

where F is the forward pass of a token (`Cost.flops_per_token`); a training step costs three of it, the backward pass twice the
forward pass (Kaplan et al., arXiv 2001.08361, section 2.1).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from conf.settings import Natural, Refusal, RequestError, Settings, Share, text
from suite.compute.settings import Flops, Tokens

FORWARDS_PER_STEP = 3.0
"""What a training step costs, in forward passes."""
MOST_STEPS = 2**31 - 1
KEYS = ("steps", "tokens", "flops")
SPELLINGS = tuple(f"train.{key}" for key in KEYS)


class Length(Settings, kw_only=True):
    """One of steps, tokens and flops is given. decay_steps, decay_share: of train.schedule=wsd, not both."""

    steps: Natural | None
    tokens: Tokens | None
    flops: Flops | None
    decay_share: Share | None

    @property
    def is_plain(self) -> bool:
        """Whether it is a number of steps and nothing has to be settled."""
        return self.steps is not None and self.decay_share is None


def asked(train: Mapping[str, Any], typed: Collection[str]) -> Length:
    """The length in a section of train, resolved. typed: the keys that the cell gives, in the place of what files say.

    Raises RequestError for none of them, and for several.
    """
    values = {key: train.get(key) for key in KEYS}
    own = [key for key in KEYS if f"train.{key}" in typed and values[key] is not None]
    given = [key for key in own or KEYS if values[key] is not None]
    if len(given) != 1:
        said = " and ".join(f"train.{key}={text(values[key])}" for key in given or KEYS)
        raise RequestError(f"{said} given, permitted is one of {', '.join(SPELLINGS)}")
    share = train.get("decay_share")
    if share is not None and train.get("decay_steps") is not None:
        both = f"train.decay_steps={text(train['decay_steps'])} and train.decay_share={text(share)}"
        raise RequestError(f"{both} are given, permitted is one of the two")
    return Length.read({**dict.fromkeys(KEYS), **{key: values[key] for key in given}, "decay_share": share}, "train")


def steps_of(length: Length, batch_size: object, seq_len: int) -> int:
    """The steps of a length; as many as there can be where only the cost of the model says how many.

    batch_size: as it is typed. What is wrong with one that is no whole number is said where it is read.
    """
    if length.tokens is None:
        return MOST_STEPS if length.steps is None else length.steps
    sequences = int(batch_size) if isinstance(batch_size, int | float) and batch_size >= 1 else 1
    return steps_of_tokens(length.tokens, tokens_per_step=sequences * seq_len)


def steps_of_tokens(tokens: int, *, tokens_per_step: int) -> int:
    """The steps that first see so many tokens. Raises Refusal for more than a run counts."""
    return _counted("train.tokens", tokens, -(-tokens // tokens_per_step), tokens_per_step)


def steps_of_flops(flops: float, *, tokens_per_step: int, flops_per_token: float) -> int:
    """The steps whose cost is nearest to so many FLOPs, one at least. Raises Refusal for more than a run counts."""
    per_step = FORWARDS_PER_STEP * flops_per_token * tokens_per_step
    return _counted("train.flops", flops, max(1, round(flops / per_step)), tokens_per_step)


def settled(length: Length, steps: int) -> dict[str, Any]:
    """What stands in a section of train in the place of the length: a number of steps, and of steps of decay."""
    values: dict[str, Any] = {"train.steps": steps, "train.tokens": None, "train.flops": None}
    if length.decay_share is not None:
        values |= {"train.decay_steps": max(1, round(length.decay_share * steps)), "train.decay_share": None}
    return values


def _counted(key: str, value: float, steps: int, tokens_per_step: int) -> int:
    if steps > MOST_STEPS:
        raise Refusal(key, value, f"at most {MOST_STEPS:,} steps, here of {tokens_per_step:,} tokens")
    return steps
