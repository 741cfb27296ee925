"""NVIDIA's Multi-Process Service: processes that share a GPU then run their kernels at the same time, not in turns."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping

from suite.machine.parent import die_with_parent

CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
VISIBLE = "CUDA_VISIBLE_DEVICES"
STOP_SECONDS = 10.0


def is_there() -> bool:
    """Whether this machine has the service, and nobody has started one for this command already."""
    return shutil.which(CONTROL) is not None and PIPES not in os.environ


@contextlib.contextmanager
def service() -> Iterator[Mapping[str, str]]:
    """Runs the service; gives the environment in which a process is its client.

    The service ends with the block, and with this process however that ends. Raises OSError where it can't be started.
    """
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        environment = {PIPES: folder, LOGS: folder}
        # It numbers anew the GPUs that it is told of, so a client that is told of GPU 1 alone would find none.
        everything = {name: value for name, value in os.environ.items() if name != VISIBLE}
        daemon = subprocess.Popen(
            [CONTROL, "-f"],
            env={**everything, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent(os.getpid()),
        )
        try:
            yield environment
        finally:
            daemon.terminate()
            try:
                daemon.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
