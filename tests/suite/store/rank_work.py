"""What the ranks of tests/suite/store/test_sharded.py do, each in a process of its own that imports no more than this."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import suite.store.sharded
from suite.compute.parallel import World
from suite.compute.wrapping import begin_moments
from suite.store.checkpoint import Progress, training_state
from suite.store.keeping import Keeping
from suite.store.run_directory import RunDirectory
from suite.store.sharded import Sharded
from tests.suite.running.team import FORKED

RUN_ID = "0123456789ab"
CPU = torch.device("cpu")


def made(seed: int, size: int, shards: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of odd sizes, some ranks of which hold nothing of a parameter."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 33), nn.Tanh(), nn.Linear(33, 1))
    if shards:
        fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def updated(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step on a batch that all ranks share."""
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(model: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The training state, put together from all ranks."""
    state = training_state(model, optimizer, best)
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for name, t in state.items()}


def write(rank: int, size: int, store: str) -> None:
    """Trains six steps, with checkpoints after 2 (waited for), 3 (kept, not waited for), 4 (the disk of a rank is full), 5 and 6.

    What every checkpoint has to hold lies in expected/.
    """
    notes: list[str] = []
    directory, world = RunDirectory(Path(store), RUN_ID), World(rank, size, rank, CPU, writers=dist.new_group(backend="gloo"))
    checkpoints = Sharded(directory, world, Keeping(last=2, every=3), notes.append)
    model, optimizer = made(0, size, shards=True)
    (Path(store) / "expected").mkdir(exist_ok=True)
    for step in range(6):
        updated(model, optimizer, step)
        best = {name: tensor.clone() for name, tensor in model.state_dict().items()} if step == 4 else None
        expected = whole(model, optimizer, best)
        if rank == 0:
            save_file(expected, Path(store) / "expected" / f"{step + 1}.safetensors")
        if step >= 1:
            real = suite.store.sharded.write_rank_file
            if step == 3 and rank == size - 1:
                suite.store.sharded.write_rank_file = full
            progress = Progress(step=step + 1, losses=(0.5, 1 / 3), best_loss=0.25 if best else None)
            checkpoints.save(training_state(model, optimizer, best), progress, blocking=step in (1, 4))
            if step == 3:
                checkpoints.look()
                suite.store.sharded.write_rank_file = real
        assert not any("left out" in note for note in notes) or step >= 3
    checkpoints.look()
    if rank == 0:
        assert notes == [f"a checkpoint is left out: {os.strerror(errno.ENOSPC)} (rank {size - 1})"], notes


def restored(
    checkpoints: Sharded, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor] | None]:
    """What was saved, put into a model, its optimiser, and the weights of the best validation where there are some."""
    begin_moments(optimizer)
    best = {name: torch.empty_like(tensor) for name, tensor in model.state_dict().items()}
    progress = checkpoints.load(training_state(model, optimizer, best))
    return progress, None if progress.best_loss is None else best


def full(path: Path, tensors: dict[str, Tensor]) -> tuple[int, str]:
    """As a disk without room: half of the file is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(100))
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read(rank: int, size: int, store: str, shards: bool, step: int) -> None:
    """Restores on so many ranks; every bit is what `write` had after that step, and training goes on to the same state."""
    notes: list[str] = []
    directory, world = RunDirectory(Path(store), RUN_ID), World(rank, size, rank, CPU, writers=dist.new_group(backend="gloo"))
    model, optimizer = made(1, size, shards)
    progress, best = restored(Sharded(directory, world, Keeping(last=2, every=3), notes.append), model, optimizer)
    assert (progress.step, progress.losses, notes) == (step, (0.5, 1 / 3), [])
    assert_equal(whole(model, optimizer, best), Path(store) / "expected" / f"{step}.safetensors")


def assert_equal(state: dict[str, Tensor], path: Path) -> None:
    expected = load_file(path)
    assert state.keys() == expected.keys() and len(state) in (16, 20)
    for name, tensor in state.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


def meet(rank: int, size: int, port: int, jobs: list[tuple]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    for function, *arguments in jobs:
        function(rank, size, *arguments)
    dist.destroy_process_group()


def on_ranks(size: int, *jobs: tuple) -> None:
    """Calls functions on so many processes, one after another; raises what one of them raises."""
    port = 20_000 + (os.getpid() * 7 + size) % 20_000
    torch.multiprocessing.start_processes(meet, (size, port, list(jobs)), size, start_method=FORKED.get_start_method())


def without(store: Path, copy: Path, steps: tuple[int, ...]) -> Path:
    """A copy of a store without the checkpoints after some steps."""
    shutil.copytree(store, copy)
    for step in steps:
        for path in copy.glob(f"runs/*/checkpoint/**/step-{step:09d}"):
            shutil.rmtree(path)
    return copy
