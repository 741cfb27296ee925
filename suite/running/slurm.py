"""Jobs of a cluster, or of this machine, through submitit: each makes a run, in as many processes as it has GPUs.

A job that is told that its time is over, or that another one takes its place, saves a checkpoint and is queued again; there the
run goes on. submitit keeps a pickle of what a job is to do in the folder of the request's jobs, and its logs beside it.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from conf.settings import RequestError
from suite.compute.parallel import World
from suite.compute.settings import Compute
from suite.plan import cell_runs, plan
from suite.request.compose import compose_one
from suite.request.launch import Launch
from suite.request.overrides import Request, is_hydra
from suite.running.execute import is_done
from suite.running.signals import INTERRUPTED, notice
from suite.store.foreign import counted, say
from suite.store.run_directory import RunDirectory

LOOK_SECONDS = 1.0
NAMED_JOBS = 8


def launch_of(request: Request) -> Launch | None:
    """What a request says in `launch`; None where it trains in this command. Raises RequestError."""
    typed = [override for override in request.overrides if _is_launch(override.key_or_group)]
    if not typed:
        return None
    for override in typed:
        if override.is_sweep_override():
            raise RequestError(f"{override.input_line}: a request is launched in one way, permitted is one value")
    composed = compose_one(request.cells[0])
    if composed.launch.to == "none":
        return None
    if any(is_hydra(override) for override in request.overrides):
        raise RequestError(f"launch={composed.launch.to} submits jobs by itself, permitted with hydra/launcher is launch=none")
    _check(composed.launch, composed.compute)
    return composed.launch


def _check(launch: Launch, compute: Compute) -> None:
    if launch.processes > 1 and compute.parallel == "none":
        raise RequestError(f"compute.parallel=none, permitted in jobs of {launch.processes} processes are ddp, fsdp")
    if compute.parallel != "none" and launch.nodes * launch.gpus_per_node not in (0, launch.processes):
        gpus = counted(launch.nodes * launch.gpus_per_node, "GPU")
        raise RequestError(f"launch.processes_per_node={launch.processes_per_node}, permitted with {gpus} is one process a GPU")
    _submitit(launch)


def _is_launch(key: str) -> bool:
    return key.partition(".")[0] == "launch"


def _submitit(launch: Launch) -> ModuleType:
    try:
        import submitit
    except ImportError as error:
        install = "pip install -e '.[slurm]', or 'linear-rnn-suite[slurm]'"
        raise RequestError(f"launch={launch.to} needs submitit: {install}; permitted without it is launch=none") from error
    return submitit


@dataclass(frozen=True)
class Job:
    """What every process of a job does: one cell of the request. is_joined: whether they train one run together."""

    cell: tuple[str, ...]
    is_joined: bool

    def __call__(self) -> int:
        """Returns the exit status. A process that was told to make room returns nothing: its job is queued again, and ends."""
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        told = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
        queue_again, is_first = signal.getsignal(told), JobEnvironment().global_rank == 0
        if self.is_joined:
            # Every process sees the GPUs of its machine, and takes the one of its number.
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        signal.signal(told, notice.give if is_first else notice.pass_over)
        try:
            status = _make_cell(self.cell)
        except KeyboardInterrupt:
            status = INTERRUPTED
        if status and notice.is_given:
            if not is_first:
                # Without a word: a process that fails may have its job ended before it is queued again.
                sys.exit(0)
            assert callable(queue_again)
            queue_again(told, None)
        return status

    def checkpoint(self) -> Any:
        """What the job does when it is queued again: the same, which goes on from the run's last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _make_cell(cell: Sequence[str]) -> int:
    """One cell, in all processes of its job: the request is planned again there and worked off; returns the exit status."""
    # Imported here: what makes runs also launches them.
    from suite.running.requests import results_folder, train_all
    from suite.running.together import check_ranks, follow_command, lead, plan_together, ranks

    def make(world: World) -> int:
        runs = plan(cell)
        check_ranks(runs, launches=False)
        plan_together(world, runs)
        return train_all(runs, results_folder(runs[0].paths.results), world)

    with ranks() as world:
        return lead(world, lambda: make(world)) if world.is_first else follow_command(world, lambda: plan(cell))


def script(launch: Launch) -> str:
    """The batch script of a job, as it would be given to sbatch; nothing is submitted."""
    executor = _slurm(launch)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def check_scheduler(launch: Launch) -> None:
    """Raises RequestError where no job can be submitted."""
    if launch.to == "slurm" and shutil.which("sbatch") is None:
        raise RequestError("launch=slurm, but there is no sbatch here; permitted are none, local")


def submit(launch: Launch, request: Request, compute: Compute, results: Path) -> None:
    """Submits a job a run that is left, says how they are called, and waits for them unless launch.wait=false."""
    work = _left(request, compute, results)
    folder = Path(launch.folder).absolute()
    if not work:
        return
    processes = "1 process" if launch.processes == 1 else f"{launch.processes} processes"
    place = [override.input_line for override in request.overrides if override.key_or_group == "paths.results"]
    say(f"submits {counted(len(work), 'job')} of {processes}, one a run; their logs lie in {folder}")
    say(f"follow them with: {shlex.join(['python', '-m', 'suite', 'list', 'runs', *place])}")
    if launch.to == "local":
        _work_off(launch, work)
        return
    executor = _slurm(launch)
    with executor.batch():
        jobs = [executor.submit(each) for each in work]
    ids = [str(job.job_id) for job in jobs]
    more = [f"and {len(ids) - NAMED_JOBS} more"] if len(ids) > NAMED_JOBS else []
    say(f"job ids: {', '.join([*ids[:NAMED_JOBS], *more])}")
    if launch.wait:
        _wait(jobs, len(jobs))


def _left(request: Request, compute: Compute, results: Path) -> list[Job]:
    """A job a cell, but for those whose run is done, or in the hands of another process, such as an earlier command's job."""
    work, held = list[Job](), 0
    for cell, run in zip(request.cells, cell_runs(request), strict=True):
        directory = RunDirectory(results, run.run_id)
        is_held = directory.path.exists() and directory.lock.holder() is not None
        held += is_held
        if not (is_held or is_done(run, directory)):
            own = tuple(each for each in cell if not _is_launch(each.partition("=")[0]))
            work.append(Job(own, compute.parallel != "none"))
    done = len(request.cells) - len(work) - held
    if done or held:
        say(f"no job for what is done ({counted(done, 'run')}) and what other processes work on ({counted(held, 'run')})")
    return work


def _work_off(launch: Launch, work: Sequence[Job]) -> None:
    """The jobs of this machine, so many at a time as may run. Whoever interrupts this command ends them."""
    executor, jobs = _local(launch), list[Any]()
    try:
        for each in work:
            _wait(jobs, len(jobs) - launch.jobs + 1)
            jobs.append(executor.submit(each))
        _wait(jobs, len(jobs))
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


def _wait(jobs: Sequence[Any], count: int) -> None:
    """Returns once so many of the jobs are done; how they ended stands in the store."""
    while sum(job.done() for job in jobs) < count:
        time.sleep(LOOK_SECONDS)


def _slurm(launch: Launch) -> Any:
    """What submits to Slurm, and writes scripts for it wherever it is."""
    submitit = _submitit(launch)

    class Anywhere(submitit.SlurmExecutor):  # type: ignore[misc, name-defined]
        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = Anywhere(folder=Path(launch.folder).absolute(), max_num_timeout=launch.requeues)
    given = {
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "constraint": launch.constraint,
        "gpus_per_node": launch.gpus_per_node or None,
        "mem": None if launch.memory_gb is None else f"{launch.memory_gb}GB",
        "additional_parameters": launch.options or None,
    }
    executor.update_parameters(
        job_name="lrs",
        time=launch.minutes,
        nodes=launch.nodes,
        ntasks_per_node=launch.processes // launch.nodes,
        cpus_per_task=launch.cpus_per_process,
        signal_delay_s=launch.signal_seconds,
        array_parallelism=launch.jobs,
        **{key: value for key, value in given.items() if value is not None},
    )
    return executor


def _local(launch: Launch) -> Any:
    executor = _submitit(launch).LocalExecutor(folder=Path(launch.folder).absolute(), max_num_timeout=launch.requeues)
    executor.update_parameters(
        timeout_min=launch.minutes,
        tasks_per_node=launch.processes,
        gpus_per_node=launch.gpus_per_node,
        signal_delay_s=launch.signal_seconds,
    )
    return executor
