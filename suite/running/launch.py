"""Runs in other processes or on other machines, through Hydra's launcher plugins (joblib, submitit and others)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
                "joblib and submitit come with pip install 'linear-rnn-suite[launchers]')"
            ) from error
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=_job, config=config)

    def launch(cells: Sequence[Sequence[str]]) -> None:
        chosen = config.hydra.runtime.choices["hydra/launcher"]
        say(f"submits {len(cells)} jobs, one a run, through hydra/launcher={chosen}, and waits for them")
        for job_return in launcher.launch([[f"+cell=[{','.join(map(quoted, cell))}]"] for cell in cells], initial_job_idx=0):
            # Raises what the job raised; a run that failed is no exception, its status says so.
            _ = job_return.return_value

    return launch


def _job(config: DictConfig) -> None:
    """One cell, in the launcher's process: the request is planned again there and worked off alone."""
    from suite.plan import plan
    from suite.running.requests import train_all

    # The launcher brings its own Hydra along, and planning composes anew.
    GlobalHydra.instance().clear()
    runs = plan(list(config.cell))
    train_all(runs, Path(runs[0].paths.results))
