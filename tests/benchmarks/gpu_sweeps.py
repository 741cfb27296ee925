"""How many small runs a GPU trains at the same time, for each way to do so: steps a second over all runs together.

    python -m tests.benchmarks.gpu_sweeps [--models transformer mesanet] [--processes 4 8] [--mps] [--dry-run]

The work is MQAR as in figure 2 of Zoology: 2 blocks without an MLP, d_model 64, vocabulary 8,192, batches of 512 x 64 with 4
pairs. The training split lies on the GPU. Without --processes: eager steps, then 1 to 16 runs of captured steps on streams of one
process, with one step and with eight in a graph, then compiled, with products in TF32, and under bfloat16 autocast. With
--processes: so many processes of one run each, started together; --mps: as clients of NVIDIA's MPS.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import torch

from suite.compute.acceleration import accelerate
from suite.compute.optimization import build_optimizer
from suite.compute.resident import Resident
from suite.compute.step import WARM_UP_STEPS, EagerStep
from suite.machine import mps
from suite.plan import Run, plan, task_of
from suite.saved import new_model

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
WORK = ("protocol=zoology_fig2", "eval=none", "size.num_heads=2", "size.head_dim=32")
TOY = ("task.num_train=64", "task.vocab_size=64", "train.batch_size=8")
RUNS = (1, 2, 4, 8, 16)
# compile, precision of float32 products, autocast
FORMS = ((False, "highest", "none"), (True, "highest", "none"), (True, "high", "none"), (True, "high", "bfloat16"))
# Batches of indices that a run goes through again and again.
DRAWN = 64


def planned(model: str, dry_run: bool) -> Run:
    (run,) = plan([f"model={model}", *WORK, *(TOY if dry_run else ())])
    return run


class Packed:
    """A run whose next `steps` steps are one graph, on a stream of its own."""

    def __init__(self, run: Run, split: Resident, *, steps: int, compiled: bool, autocast: str) -> None:
        train = run.config.train.replace({"autocast": autocast})
        self.split, self.steps, self.turn = split, steps, 0
        model = new_model(run, DEVICE)
        self.optimizer = build_optimizer(model, train)
        if compiled:
            accelerate(model, run.compute.replace({"compile": True}))
        self.step = EagerStep(model, self.optimizer, train)
        drawn = torch.randint(len(split.tokens), (DRAWN, steps, train.batch_size))
        self.host = drawn.pin_memory() if CUDA else drawn
        self.indices = torch.zeros_like(drawn[0], device=DEVICE)
        self.stream = torch.cuda.Stream() if CUDA else None

    def eager(self) -> None:
        for indices in self.indices:
            self.step(self.split.batch(indices))

    def capture(self) -> Packed:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP_STEPS):
                self.eager()
        self.stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            self.eager()
        return self

    def advance(self) -> None:
        with torch.cuda.stream(self.stream):
            self.indices.copy_(self.host[self.turn % DRAWN], non_blocking=True)
            self.graph.replay()
        self.turn += 1


def rate(runs: Sequence[Packed], seconds: float = 3.0) -> float:
    """Steps a second of runs that take turns; the host is never more than eight turns ahead."""
    turns, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for run in runs:
            run.advance()
        turns += 1
        if turns % 8 == 0:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return turns * sum(run.steps for run in runs) / (time.perf_counter() - began)


def in_one_process(model: str, dry_run: bool) -> Iterator[tuple[str, float]]:
    run = planned(model, dry_run)
    split = Resident.of(task_of(run.config), DEVICE)
    single = Packed(run, split, steps=1, compiled=False, autocast="none")
    for _ in range(WARM_UP_STEPS):
        single.eager()
    if not CUDA:
        return
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(100):
        single.eager()
    torch.cuda.synchronize()
    yield "eager", 100 / (time.perf_counter() - began)
    for steps, (compiled, precision, autocast) in ((8, FORMS[0]), *((1, form) for form in FORMS)):
        torch.set_float32_matmul_precision(precision)
        runs: list[Packed] = []
        for count in RUNS:
            while len(runs) < count:
                runs.append(Packed(run, split, steps=steps, compiled=compiled, autocast=autocast).capture())
            form = f"{'compiled' if compiled else 'captured'}, {precision}, {autocast}, {steps} in a graph"
            yield f"{form}, {count} runs", rate(runs)


def in_processes(model: str, count: int, with_mps: bool, dry_run: bool) -> float:
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(count), context.Queue()
    with mps.service() if with_mps else contextlib.nullcontext({}) as environment:
        arguments = (model, dict(environment), barrier, rates, dry_run)
        workers = [context.Process(target=_worker, args=arguments) for _ in range(count)]
        for worker in workers:
            worker.start()
        found = sum(rates.get(timeout=300) for _ in workers)
        for worker in workers:
            worker.join()
    return found


def _worker(model: str, environment: dict[str, str], barrier: Barrier, rates: Queue[float], dry_run: bool) -> None:
    os.environ.update(environment)
    run = planned(model, dry_run)
    packed = Packed(run, Resident.of(task_of(run.config), DEVICE), steps=1, compiled=False, autocast="none").capture()
    rate([packed], 0.5)
    barrier.wait(240)
    rates.put(rate([packed]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["transformer", "mesanet", "gated_deltanet"])
    parser.add_argument("--processes", nargs="*", type=int, default=[])
    parser.add_argument("--mps", action="store_true", help="processes are clients of NVIDIA's MPS")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, on any device")
    options = parser.parse_args()
    print(torch.cuda.get_device_name() if CUDA else "CPU", f"torch {torch.__version__}", flush=True)
    for model in options.models:
        if options.processes:
            for count in options.processes if CUDA else ():
                found = in_processes(model, count, options.mps, options.dry_run)
                print(f"{model}, {count} processes{' under MPS' if options.mps else ''}: {found:,.0f} steps/s", flush=True)
            continue
        for way, found in in_one_process(model, options.dry_run):
            print(f"{model}, {way}: {found:,.0f} steps/s", flush=True)


if __name__ == "__main__":
    main()
