"""Where the processes of a request run: in this command, or in jobs that it submits."""

from __future__ import annotations

from typing import Annotated, Literal

from conf.paths import UserPath
from conf.settings import Count, Line, Name, Natural, Refusal, Settings, within


class Launch(Settings, kw_only=True):
    """The settings in conf/launch. None of them is part of a run's name.

    to: none trains in this command; slurm submits a job a run, local starts the same jobs on this machine.
    nodes, gpus_per_node: machines of a job, and GPUs of each. processes_per_node: None for one a GPU, one where there is none.
    cpus_per_process, memory_gb (of a node; None for what the cluster gives), minutes: what a job may take.
    partition, account, qos, constraint: as the cluster calls them. options: further options of sbatch, by their names.
    requeues: how often a job that ran out of time goes on in a new one; a preempted one always does.
    signal_seconds: so long before its end a job is told, to save a checkpoint. jobs: as many of them run at a time.
    wait: whether the command waits for its jobs. folder: for what submitit writes, %j stands for the job's id.
    """

    to: Literal["none", "local", "slurm"]
    nodes: Annotated[int, within(1, 4096)]
    gpus_per_node: Annotated[int, within(0, 64)]
    processes_per_node: Annotated[int, within(1, 256)] | None
    cpus_per_process: Annotated[int, within(1, 4096)]
    memory_gb: Count | None
    minutes: Annotated[int, within(1, 2**20)]
    partition: Line | None
    account: Name | None
    qos: Name | None
    constraint: Line | None
    options: dict[Name, Line]
    requeues: Natural
    signal_seconds: Annotated[int, within(1, 3600)]
    jobs: Annotated[int, within(1, 4096)]
    wait: bool
    folder: UserPath

    def __post_init__(self) -> None:
        if self.to == "local" and self.nodes != 1:
            raise Refusal("nodes", self.nodes, "1 with launch=local")
        if 60 * self.minutes <= self.signal_seconds:
            raise Refusal("signal_seconds", self.signal_seconds, f"1 to below launch.minutes={self.minutes} in seconds")

    @property
    def processes(self) -> int:
        """The processes of a job, on each node one a GPU."""
        return self.nodes * (self.processes_per_node or max(1, self.gpus_per_node))
