"""Runs in other processes or on other machines, through Hydra's launcher plugins (joblib, submitit and others)."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from conf.groups import CONF
from conf.settings import RequestError
from suite.request.overrides import Request, is_hydra, quoted
from suite.store.foreign import say

# How often one looks for the folders of submitted jobs, how long for all of them, and how many are named.
LOOK_SECONDS, LONGEST_LOOK, NAMED_JOBS = 0.2, 30.0, 8
# Hydra launches and owns nothing else: no log files, no folders, no change of directory.
QUIET = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.sweep.dir=.",
    "hydra.sweep.subdir=.",
)


def launcher_of(request: Request) -> Callable[[Sequence[Sequence[str]]], None] | None:
    """What runs cells as hydra/launcher=NAME asks for, and waits for all of them; None when nothing is asked.

    Raises RequestError for a launcher that is not installed.
    """
    hydra_overrides = [override.input_line for override in request.overrides if is_hydra(override)]
    if not hydra_overrides:
        return None
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        try:
            overrides = [*QUIET, *hydra_overrides, "+cell=[]"]
            config = loader.load_configuration(config_name="config", overrides=overrides, run_mode=RunMode.MULTIRUN)
        except HydraException as error:
            installed = ", ".join(loader.get_group_options("hydra/launcher"))
            raise RequestError(
                f"{' '.join(hydra_overrides)}: {str(error).splitlines()[0]} (installed: {installed}; "
                "joblib and submitit come with pip install -e '.[launchers]', or 'linear-rnn-suite[launchers]')"
            ) from error
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=_job, config=config)

    def launch(cells: Sequence[Sequence[str]]) -> None:
        chosen = config.hydra.runtime.choices["hydra/launcher"]
        jobs = f"{len(cells)} job{'s' if len(cells) > 1 else ''}"
        say(f"submits {jobs}, one a run, through hydra/launcher={chosen}, and waits for them")
        place = [override.input_line for override in request.overrides if override.key_or_group == "paths.results"]
        say(f"follow them with: {shlex.join(['python', '-m', 'suite', 'list', 'runs', *place])}")
        with _told_of(config.hydra.launcher.get("submitit_folder"), len(cells)):
            for job_return in launcher.launch([[f"+cell=[{','.join(map(quoted, cell))}]"] for cell in cells], initial_job_idx=0):
                # Raises what the job raised; a run that failed is no exception, its status says so.
                _ = job_return.return_value

    return launch


@contextlib.contextmanager
def _told_of(pattern: str | None, count: int) -> Iterator[None]:
    """While submitit waits for its jobs, their ids and the place of their logs are said: each has a folder named by its id."""
    if pattern is None:
        yield
        return
    folder, ended = Path(pattern).parent.absolute(), threading.Event()
    before = _entries(folder)
    say(f"their logs lie in {folder}")

    def look() -> None:
        began = time.monotonic()
        while not ended.wait(LOOK_SECONDS):
            jobs = sorted(_entries(folder) - before)
            if len(jobs) >= count or (jobs and time.monotonic() - began > LONGEST_LOOK):
                said = ", ".join(jobs if len(jobs) <= NAMED_JOBS else [*jobs[:NAMED_JOBS], f"and {len(jobs) - NAMED_JOBS} more"])
                say(f"job ids: {said}")
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _entries(folder: Path) -> set[str]:
    """The folders of jobs: submitit names each by the id that its scheduler gave, and one by the pattern itself."""
    return {path.name for path in folder.iterdir() if path.is_dir() and "%" not in path.name} if folder.is_dir() else set()


def _job(config: DictConfig) -> None:
    """One cell, in the launcher's process: the request is planned again there and worked off alone."""
    import torch

    from suite.compute.parallel import alone
    from suite.plan import plan
    from suite.running.requests import train_all

    # The launcher brings its own Hydra along, and planning composes anew.
    GlobalHydra.instance().clear()
    runs = plan(list(config.cell))
    train_all(runs, Path(runs[0].paths.results), alone(torch.device("cpu")))
