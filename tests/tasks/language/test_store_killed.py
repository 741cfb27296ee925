"""The token store of a command that is killed while it tokenises."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.tasks.language.texts import text_data

ROOT = Path(__file__).parents[3]


MAKING = """
import json, re, resource, sys
from tasks.language.settings import DataSettings
from tasks.language.store import open_store
from tasks.language.vocabulary import Vocabulary
data = DataSettings.read(json.loads(sys.argv[1]), "data")
parts = open_store(data, Vocabulary.of(data))
# What getrusage says of this process itself is that of the one that started it, if that was larger.
own = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
workers = data.workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"kib": own + workers, "digests": {name: part.digest for name, part in parts.items()}}))
"""


def making(path: Path, cache: Path) -> subprocess.Popen[str]:
    data = json.dumps(text_data(path, cache, held_out="each", workers=2))
    return subprocess.Popen(
        [sys.executable, "-c", MAKING, data], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_a_command_that_is_killed_twice_goes_on_to_the_same_store_in_bounded_memory(tmp_path):
    path = tmp_path / "text.txt"
    line = "the quick brown fox jumps over the lazy dog, naïve café — 東京 😀\n" * 40
    with open(path, "w") as file:
        for number in range(50_000_000 // len(line.encode())):
            file.write(f"{number} {line}<|endoftext|>\n")
    for count in (1, 2):
        process = making(path, tmp_path / "killed")
        while len(list((tmp_path / "killed").rglob("0*.json"))) < count:
            assert process.poll() is None, "it was done before it could be killed"
            time.sleep(0.001)
        workers = children(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        assert "Traceback" not in process.communicate()[1]
        deadline = time.monotonic() + 20
        # Nobody goes on without the command.
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "a process outlives the command"
            time.sleep(0.05)
    assert not list((tmp_path / "killed").rglob("index.json"))
    said = [json.loads(making(path, tmp_path / name).communicate()[0]) for name in ("killed", "whole")]
    assert said[0]["digests"] == said[1]["digests"]
    assert files(tmp_path / "killed") == files(tmp_path / "whole") and len(files(tmp_path / "whole")) > 12
    assert all(each["kib"] < 300 * 1024 for each in said), said


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def files(cache: Path) -> dict[str, bytes]:
    kinds = ("ids", "bytes", "bos", "counts")
    return {path.name: path.read_bytes() for kind in kinds for path in cache.rglob(f"*.{kind}")}
