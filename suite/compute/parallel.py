"""The processes that train one model together: who they are, what they tell each other, and what they add up.

Rank 0 decides and the others follow: whatever depends on files, clocks or signals is found out by rank 0 alone and told to
all. What is told goes through a group of its own (gloo), in which nobody waits in vain for a rank that evaluates for hours,
and in which the end of a process is noticed at once. Numbers of a step go through NCCL on GPUs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from suite.machine.ranks import Place

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# Ranks begin a step at about the same time, but for what one of them compiles.
STEP_TIMEOUT = datetime.timedelta(minutes=30)
WAITING_TIMEOUT = datetime.timedelta(days=30)


@dataclass(frozen=True)
class World:
    """This process among those that compute a run. device: where its share of the run is computed.

    talk: the group in which ranks tell each other what is decided. writers: that of the threads which write checkpoints. store:
    where a rank leaves what the others look up when it does not answer. All are None for a process by itself.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    talk: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)
    writers: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)
    store: Store | None = field(default=None, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this process prints, writes and decides."""
        return self.rank == 0

    @property
    def is_joined(self) -> bool:
        """Whether a launcher started it as one of several, of which there may be one."""
        return self.talk is not None

    def rows(self, batch_size: int) -> range:
        """The rows of a batch that this rank computes: one after another, and as many as the others have or one more."""
        return shares(batch_size, self.size)[self.rank]

    def add_up(self, numbers: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in place, on the device."""
        if self.is_joined:
            dist.all_reduce(numbers)
        return numbers


def alone(device: torch.device) -> World:
    """A process by itself."""
    return World(rank=0, size=1, local_rank=0, device=device)


def shares(count: int, size: int) -> list[range]:
    """`count` rows dealt to `size` ranks in order, as evenly as can be; the first ranks have the ones left over."""
    each, over = divmod(count, size)
    ends = [rank * each + min(rank, over) for rank in range(size + 1)]
    return [range(first, end) for first, end in zip(ends[:-1], ends[1:], strict=True)]


def joined(place: Place) -> World:
    """The world of a process that a launcher started; `at` says on which device.

    All processes meet here. What they tell each other needs no GPU; numbers on GPUs go through NCCL, by those that have one.
    """
    store, _, _ = next(iter(rendezvous("env://")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=STEP_TIMEOUT)
    talk, writers = (dist.new_group(backend="gloo", timeout=WAITING_TIMEOUT) for _ in range(2))
    return World(place.rank, place.size, place.local_rank, torch.device("cpu"), talk, writers, store)


def part(world: World) -> None:
    """Ends what the processes had in common. All of them call it, when nothing is under way between them.

    One that leaves at another point does not: it would wait for the others, and its end tells them.
    """
    if world.is_joined:
        dist.destroy_process_group()


def give_up() -> None:
    """Ends what GPUs of this process compute together with those of others; whoever waits for it gets an error or no numbers."""
    if (group := dist.group.WORLD) is not None:
        group.abort()


def at(world: World, device: torch.device) -> World:
    """The same process, computing on a device of that kind: on the GPU that its number on the machine says."""
    if world.is_joined and device.type == "cuda":
        torch.cuda.set_device(world.local_rank)
    return dataclasses.replace(world, device=device)


class Flags(enum.IntFlag):
    """What rank 0 decides after a step. LEAVES: the training is to go on elsewhere. FAILED: it has left the training."""

    NOTHING = 0
    SAVES = enum.auto()
    KEEPS = enum.auto()
    ENDS = enum.auto()
    LEAVES = enum.auto()
    FAILED = enum.auto()


class LeftAlone(Exception):
    """Rank 0 has left the training of a run, for a reason that it tells; there may be another run to train."""


def agreed(world: World, decide: Callable[[], Flags] | None) -> Flags:
    """What `decide` returns on rank 0, on all ranks; where it raises there, the others, which decide nothing, get LeftAlone."""
    flags = Flags.FAILED
    if not world.is_joined:
        assert decide is not None, "a process by itself decides"
        return decide()
    try:
        if decide is not None:
            flags = decide()
    finally:
        told = torch.tensor([flags.value])
        dist.broadcast(told, src=0, group=world.talk)
    flags = Flags(int(told))
    if flags & Flags.FAILED:
        raise LeftAlone
    return flags


def tell(world: World, message: Mapping[str, Any]) -> None:
    """Tells all ranks what comes next; rank 0 alone tells, and the others `hear`."""
    if world.is_joined:
        data = json.dumps(message).encode()
        dist.broadcast(torch.tensor([len(data)]), src=0, group=world.talk)
        dist.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), src=0, group=world.talk)


def hear(world: World) -> dict[str, Any]:
    """What rank 0 tells, waited for as long as it takes."""
    length = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(length, src=0, group=world.talk)
    data = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(data, src=0, group=world.talk)
    return json.loads(data.numpy().tobytes())


def is_agreed_by_all(world: World, is_right: bool) -> bool:
    """Whether all is right on every rank. All ranks call it."""
    told = torch.tensor([int(is_right)])
    if world.is_joined:
        dist.all_reduce(told, op=dist.ReduceOp.MIN, group=world.talk)
    return bool(told)


def leave_word(world: World, word: Mapping[str, Any]) -> None:
    """Leaves what the others find by `words` when this rank answers no more. Where nobody keeps it, nobody will ask."""
    if world.store is not None:
        with contextlib.suppress(RuntimeError):
            world.store.set(f"suite/word/{world.rank}", json.dumps(word))


def words(world: World) -> dict[int, dict[str, Any]]:
    """What other ranks have left, by rank."""
    left = {}
    for rank in set(range(world.size)) - {world.rank}:
        with contextlib.suppress(RuntimeError):
            if world.store is not None and world.store.check([f"suite/word/{rank}"]):
                left[rank] = json.loads(world.store.get(f"suite/word/{rank}"))
    return left
