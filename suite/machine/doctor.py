"""What works on this machine, and why the rest does not."""

from __future__ import annotations

import platform

import torch

from conf.groups import CONF, options
from models.backends import BACKENDS, KERNELS, obstacle
from suite.machine.devices import count_cores, select_device
from suite.machine.environment import git_commit, package_versions
from suite.machine.probes import probe_all

SYSTEMS = {"Linux": "supported", "Darwin": "supported on its CPU, though tested on Linux alone"}
NEEDED = ("torch", "numpy", "hydra-core", "pandas", "matplotlib", "lm-eval", "tokenizers", "safetensors")


def examine() -> str:
    """Versions, devices, backends, and what a CUDA device was found to do, a line each; there it takes minutes at first."""
    lines = [f"python {platform.python_version()} on {platform.platform()}, commit {git_commit() or 'unknown'}"]
    system = platform.system()
    lines.append(f"system {system}: {SYSTEMS.get(system, 'not supported, permitted are Linux and macOS')}")
    lines.append(f"configuration in {CONF}: {len(options('model'))} models, {len(options('task'))} tasks")
    for name, version in package_versions().items():
        absent = "MISSING: install the suite again" if name in NEEDED else "not installed (for GPUs alone; see docs/gpu.md)"
        lines.append(f"{name} {version or absent}")
    lines.append(f"cpu: {count_cores()} cores, {torch.get_num_threads()} torch threads by default")
    if not torch.cuda.is_available():
        lines.append("cuda: none, runs use the CPU")
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        lines.append(f"cuda:{i}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    device = select_device("auto").type
    lines += [f"backend {name}: {obstacle(name, device) or 'works'}" for name in BACKENDS]
    lines += [f"kernel of {row}" for row in KERNELS]
    if device == "cuda":
        lines += [f"probe of {tried}: {found}" for tried, found in probe_all().items()]
    else:
        lines.append("probes: no CUDA device: not probed")
    return "\n".join(lines)
