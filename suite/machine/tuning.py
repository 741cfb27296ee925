"""The verb `tune`: a table of launches for the GPU that is here, by which a first use of fla's kernels tries none.

All launches are compiled first, in as many processes as there are cores: python -m suite.machine.tuning INDEX COUNT NAME ...
is one of them. Then one process times them with nothing beside it on the card, since a launch that was timed on a busy card may
be a slow one.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from conf.settings import Refusal, RequestError, near, unknown
from models.backends import launches, obstacle
from models.backends.fla_calls import CALLS
from models.backends.fla_launches import versions
from models.backends.fla_tuning import (
    BATCH_SIZE,
    DIMS,
    DTYPES,
    Asked,
    compile_share,
    entries,
    every_call,
    time_in_two_rounds,
    timed,
)
from suite.machine.devices import count_cores
from tasks.files import write_atomically
from tasks.progress import tell

ROOT = Path(__file__).resolve().parents[2]
OWN = {
    "ops": "NAMES  (whose kernels are timed, all where it is left out)",
    "heads": "SIZES  (of keys and values of a head, of 16, 32, 64, 128, 256; 64,128 where it is left out)",
    "dtypes": "NAMES  (of bfloat16, float16, float32; bfloat16 where it is left out)",
    "path": "FILE  (the table, launches.yaml where it is left out; LRS_LAUNCHES=FILE in the environment then names it)",
}
"""The keys of `tune`."""
UNSAID = {"heads": "64,128", "dtypes": "bfloat16", "path": "launches.yaml"}
MOST_PROCESSES = 32
HEADER = """# Launches of flash-linear-attention's kernels, timed by `python -m suite tune` on the card that is named below.
"""


def tune(arguments: Sequence[str]) -> str:
    """Makes the table and says where it is. Raises RequestError."""
    asked, path = _read(arguments)
    reason = obstacle("fla", "cuda" if torch.cuda.is_available() else "cpu")
    if reason is not None:
        raise RequestError(f"tune can't run here: {reason}")
    found = launches.find(versions(), torch.cuda.get_device_capability(), torch.cuda.get_device_name())
    # For this process and those that it starts: what is timed must not be pinned.
    os.environ[launches.VARIABLE] = launches.NONE
    _compile_all(asked, min(count_cores(), MOST_PROCESSES))
    table = _timed(asked, None if isinstance(found, str) else found)
    write_atomically(path, written(table).encode())
    measured = sum(entry.measured for each in table.kernels.values() for entry in each)
    return f"{path}: {measured} launches measured on {table.card}; {launches.VARIABLE}={path} has runs use it"


def written(table: launches.Table) -> str:
    """A table as its file has it, an entry a line."""
    head = {name: value for name, value in table.plain().items() if name != "kernels"}
    lines = [HEADER + yaml.safe_dump(head, sort_keys=False, default_flow_style=None).rstrip(), "kernels:"]
    for kernel, each in table.kernels.items():
        lines.append(f"  {kernel}:")
        for entry in each:
            line = yaml.safe_dump(entry.plain(), sort_keys=False, default_flow_style=True, width=10_000)
            lines.append(f"  - {line.rstrip()}")
    return "\n".join(lines) + "\n"


def _read(arguments: Sequence[str]) -> tuple[Asked, Path]:
    """What is timed and the path, from what was typed."""
    typed: dict[str, str] = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if key not in OWN:
            raise unknown("key", key, OWN)
        if not separator or not value or key in typed:
            raise RequestError(f"{argument!r} is not of the form {key}=VALUE, once")
        typed[key] = value
    typed = UNSAID | typed
    path = Path(typed["path"])
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise RequestError(f"path={path} can't be written, permitted are files in a folder that is there")
    permitted = {"ops": list(CALLS), "heads": list(map(str, DIMS)), "dtypes": list(DTYPES)}
    names, heads, dtypes = (_listed(key, typed.get(key), each) for key, each in permitted.items())
    asked = Asked(names, tuple(map(int, heads)), dtypes)
    if not asked.every():
        sizes = ", ".join(f"{CALLS[name].smallest} to {CALLS[name].largest}" for name in names)
        raise Refusal("heads", ",".join(heads), f"{sizes} for ops={','.join(names)}")
    return asked, path


def _listed(key: str, value: str | None, permitted: Sequence[str]) -> tuple[str, ...]:
    """The names of a comma list, all that are permitted where nothing was typed."""
    names = permitted if value is None else value.split(",")
    for name in names:
        if name not in permitted:
            raise Refusal(key, name, ", ".join(permitted), near(name, permitted), "is unknown")
    return tuple(dict.fromkeys(names))


def _compile_all(asked: Asked, count: int) -> None:
    """Returns once every process has compiled its share. Raises RuntimeError with what one said that failed."""
    words = [",".join(map(str, each)) for each in asked]
    running: list[subprocess.Popen[str]] = []
    try:
        for index in range(count):
            command = [sys.executable, "-m", "suite.machine.tuning", str(index), str(count), *words]
            running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        for done, process in enumerate(running, start=1):
            _, said = process.communicate()
            if process.returncode != 0:
                raise RuntimeError(f"a process that compiles launches ended with status {process.returncode}: {said[-2000:]}")
            tell("compiles launches", done, count)
    finally:
        # However this ends, nothing is left that holds the device.
        for process in running:
            process.kill()


def _timed(asked: Asked, before: launches.Table | None) -> launches.Table:
    """The table of what is the fastest here, and behind that what the one before it has."""
    time_in_two_rounds()
    device, total = torch.device("cuda", torch.cuda.current_device()), len(asked.every())
    for done, _ in enumerate(every_call(asked, device, batch_size=BATCH_SIZE), start=1):
        tell("times launches", done, total)
    kernels = dict(before.kernels) if before is not None else {}
    for name, found in timed().items():
        kernels[name] = entries(found, kernels.get(name, ()))
    return launches.Table(
        card=torch.cuda.get_device_name(),
        capability=torch.cuda.get_device_capability(),
        versions={name: found for name, found in versions().items() if found is not None},
        made=datetime.date.today().isoformat(),
        kernels=dict(sorted(kernels.items())),
    )


if __name__ == "__main__":
    index, count, names, heads, dtypes = sys.argv[1:]
    share = Asked(tuple(names.split(",")), tuple(map(int, heads.split(","))), tuple(dtypes.split(",")))
    compile_share(share, torch.device("cuda"), index=int(index), count=int(count))
