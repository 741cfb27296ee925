"""Runs on other machines or processes, through Hydra's launcher plugins (joblib, submitit and others)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict

from suite.request import CONF, expand, is_hydra, parse


def launcher_of(arguments: Sequence[str]) -> str | None:
    """The launcher that hydra/launcher=NAME asks for; None when the runs stay in this command."""
    for override in parse(arguments):
        if override.key_or_group == "hydra/launcher":
            return str(override.value())
    return None


def job(config: DictConfig) -> None:
    """One cell, in the launcher's process: the request is planned again there and worked off alone."""
    from suite.execute import execute_all
    from suite.plan import plan
    from suite.progress import ProgressDisplay

    runs = plan(list(config.cell))
    execute_all(runs, Path(runs[0].config["paths"]["results"]), ProgressDisplay(len(runs)), since=time.time())


def launch(arguments: Sequence[str], launcher: str) -> None:
    """Hands every cell of a request to a Hydra launcher and waits for all of them."""
    hydra_overrides = [override.input_line for override in parse(arguments) if is_hydra(override)]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(
            config_name="config",
            overrides=[*hydra_overrides, "hydra.output_subdir=null", "hydra.sweep.dir=.", "hydra.sweep.subdir=.", "+cell=[]"],
            run_mode=RunMode.MULTIRUN,
        )
        with open_dict(config):
            config.hydra.job_logging, config.hydra.hydra_logging = None, None
        context = HydraContext(config_loader=loader, callbacks=None)
        plugin = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=config)
        plugin.launch([[_cell(cell)] for cell in expand(arguments)], initial_job_idx=0)


def _cell(overrides: Sequence[str]) -> str:
    quoted = ",".join("'" + override.replace("\\", "\\\\").replace("'", "\\'") + "'" for override in overrides)
    return f"+cell=[{quoted}]"
