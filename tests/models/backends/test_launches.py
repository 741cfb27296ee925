"""Tables of launches: what a table is, how Triton's autotuner takes it, and how it is made. No kernel runs here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from triton import Config
from triton.runtime.autotuner import Autotuner

from conf.settings import RequestError
from models.backends import fla, fla_launches, fla_tuning, launches
from suite.machine import tuning

ROOT = Path(__file__).resolve().parents[3]
VERSIONS = {"fla-core": "0.6.0", "triton": "3.7.1"}
HOPPER = (9, 0)
NAME = "some.module:kernel"
ASKED = fla_tuning.Asked(("kda",), (64,), ("bfloat16",))


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    fla_launches._say.cache_clear()


def kernel(q, o, K, BK):
    """What a kernel's source would be."""


class Compiled:
    """In place of what Triton compiles: keeps what it was called with."""

    fn = staticmethod(kernel)

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def run(self, *args: Any, **given: Any) -> None:
        self.calls.append(given)


def autotuner(timed: list[Callable[[], None]], **options: Any) -> Autotuner:
    """Triton's own, over four launches; each that is timed is added to the list."""
    configs = [Config({"BK": block}, num_warps=warps, num_stages=2) for block in (32, 64) for warps in (2, 4)]

    def time(call: Callable[[], None], quantiles: object) -> list[float]:
        timed.append(call)
        return [float(len(timed))] * 3

    return Autotuner(Compiled(), ["q", "o", "K", "BK"], configs, ["K", "BK"], None, None, do_bench=time, **options)


def entry(launch: dict[str, Any], **where: Any) -> launches.Entry:
    return launches.Entry.read({"where": where, "launch": launch, "measured": False})


def call(tuned: Autotuner, key_dim: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    q = torch.empty(2, key_dim, dtype=dtype)
    tuned.run(q, q.float(), K=key_dim)
    return tuned.fn.calls[-1]


def shipped() -> launches.Table:
    found = launches.find(VERSIONS, HOPPER, "NVIDIA H200")
    assert isinstance(found, launches.Table)
    return found


ENTRIES = (
    entry({"BK": 64, "num_warps": 2, "num_stages": 2}, K=128, dtype="float32"),
    entry({"BK": 64, "num_warps": 4, "num_stages": 2}, K=128),
    entry({"BK": 32, "num_warps": 4, "num_stages": 2}),
)


def test_a_kernel_with_a_launch_is_not_timed_and_one_without_is():
    timed: list[Callable[[], None]] = []
    tuned = autotuner(timed)
    call(tuned, 128)
    assert len(timed) == 4
    tuned.cache = fla_launches.Launches(NAME, tuned, ENTRIES)
    found = [call(tuned, 128), call(tuned, 128, torch.float32), call(tuned, 64), call(tuned, 64)]
    assert len(timed) == 4
    assert [(each["BK"], each["num_warps"]) for each in found] == [(64, 4), (64, 2), (32, 4), (32, 4)]


def test_a_kernel_that_the_table_lacks_is_tuned_and_one_line_says_so():
    timed: list[Callable[[], None]] = []
    tuned = autotuner(timed)
    tuned.cache = fla_launches.Launches("another:kernel", tuned, ENTRIES[:1])
    with pytest.warns(UserWarning, match="fla tunes another:kernel at its first use: the table has no launch for it") as said:
        call(tuned, 64)
        call(tuned, 96)
    assert len(said) == 1 and len(timed) == 8


@pytest.mark.filterwarnings("ignore:fla tunes")
def test_a_launch_that_fla_lists_nowhere_or_rules_out_for_a_call_is_not_taken():
    timed: list[Callable[[], None]] = []
    tuned = autotuner(timed)
    tuned.cache = fla_launches.Launches(NAME, tuned, (entry({"BK": 128, "num_warps": 4, "num_stages": 2}),))
    call(tuned, 64)
    assert len(timed) == 4

    def narrow(configs: list[Config], named: dict[str, Any], **given: Any) -> list[Config]:
        return [config for config in configs if config.kwargs["BK"] < {**named, **given}["K"]]

    tuned = autotuner(timed, prune_configs_by={"early_config_prune": narrow})
    tuned.cache = fla_launches.Launches(NAME, tuned, (entry({"BK": 64, "num_warps": 4, "num_stages": 2}),))
    call(tuned, 128)
    assert len(timed) == 4
    assert call(tuned, 64)["BK"] == 32 and len(timed) == 6


@pytest.mark.parametrize(
    ("versions", "capability", "reason"),
    [
        (VERSIONS | {"fla-core": "0.6.1"}, HOPPER, "whose fla-core is 0.6.1 and not 0.6.0"),
        (VERSIONS | {"triton": "3.8.0"}, HOPPER, "whose triton is 3.8.0 and not 3.7.1"),
        (VERSIONS | {"triton": None}, HOPPER, "whose triton is not installed and not 3.7.1"),
        (VERSIONS, (8, 0), "whose compute capability is 8.0 and not 9.0"),
    ],
)
def test_a_table_for_other_versions_or_cards_is_left_alone_and_one_line_says_why(versions, capability, reason, monkeypatch):
    monkeypatch.delenv(launches.VARIABLE, raising=False)
    monkeypatch.setattr(fla_launches, "pin_to", lambda kernels: pytest.fail("the table was handed over"))
    with pytest.warns(UserWarning, match=f"fla tunes its kernels, .*: hopper.yaml is not for this machine, {reason}") as said:
        fla_launches.pin_for(versions, capability, "a card")
        fla_launches.pin_for(versions, capability, "a card")
    assert len(said) == 1


def test_a_table_for_these_versions_is_handed_over_and_nothing_is_said(monkeypatch):
    monkeypatch.delenv(launches.VARIABLE, raising=False)
    handed: list[Any] = []
    monkeypatch.setattr(fla_launches, "pin_to", handed.append)
    with warnings.catch_warnings(action="error"):
        fla_launches.pin_for(VERSIONS | {"triton": "3.7.1+git1a2b"}, HOPPER, "NVIDIA H100 80GB HBM3")
    assert handed == [shipped().kernels]


def test_the_environment_names_another_table_or_none(tmp_path, monkeypatch):
    handed: list[Any] = []
    monkeypatch.setattr(fla_launches, "pin_to", handed.append)
    monkeypatch.setenv(launches.VARIABLE, launches.NONE)
    fla_launches.pin_for(VERSIONS, HOPPER, "a card")
    assert handed == []
    own = launches.Table(card="a card", capability=(8, 0), versions=VERSIONS, made="2026-11-30", kernels={NAME: ENTRIES})
    (tmp_path / "own.yaml").write_text(tuning.written(own))
    monkeypatch.setenv(launches.VARIABLE, str(tmp_path / "own.yaml"))
    fla_launches.pin_for(VERSIONS, (8, 0), "a card")
    assert handed == [own.kernels]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read"),
        ("- 1\n", "is no table of launches"),
        ("{card: x", "can't be read"),
        ("card: x\nkernels: 3\n", "table.yaml.kernels=3"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_a_line(content, said, tmp_path, monkeypatch):
    path = tmp_path / "table.yaml"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(launches.VARIABLE, str(path))
    with pytest.raises(RequestError, match=said) as refused:
        launches.find(VERSIONS, HOPPER, "a card")
    assert "\n" not in str(refused.value)


def test_a_table_that_the_environment_names_is_looked_at_before_a_run_begins(monkeypatch):
    monkeypatch.setenv(launches.VARIABLE, "/nowhere/table.yaml")
    monkeypatch.setattr(fla, "obstacle_of", lambda **installed: None)
    with pytest.raises(RequestError, match="LRS_LAUNCHES=/nowhere/table.yaml can't be read"):
        fla.obstacle()


def test_the_table_made_on_this_very_card_comes_first(tmp_path, monkeypatch):
    monkeypatch.delenv(launches.VARIABLE, raising=False)
    monkeypatch.setattr(launches, "FOLDER", tmp_path)
    for card in ("first", "second"):
        table = launches.Table(card=card, capability=HOPPER, versions=VERSIONS, made="2026-11-30", kernels={NAME: ENTRIES})
        (tmp_path / f"{card}.yaml").write_text(tuning.written(table))
    found = [launches.find(VERSIONS, HOPPER, card) for card in ("first", "second", "third")]
    assert [table.card for table in found if isinstance(table, launches.Table)] == ["first", "second", "first"]


def test_every_kernel_of_the_shipped_table_has_a_launch_for_every_call():
    table = shipped()
    assert len(table.kernels) > 50
    for name, entries in table.kernels.items():
        others = [bool(each.where) for each in entries]
        assert others == [True] * (len(entries) - 1) + [False], f"{name}: the last entry alone is for every call"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("fla") is None, reason="flash-linear-attention is not installed")
def test_fla_lists_every_launch_of_the_table_and_none_of_its_kernels_is_tuned():
    """In a process of its own, to which a stand-in says that there is a Hopper."""
    command = [sys.executable, "-m", "tests.models.backends.hopper_stand_in"]
    environment = {name: value for name, value in os.environ.items() if name != launches.VARIABLE}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{len(shipped().kernels)} kernels run as the table has it" in done.stdout


def test_processes_share_what_is_compiled_and_launch_nothing(monkeypatch):
    tuned = autotuner([])
    monkeypatch.setattr(fla_tuning, "kernels", lambda: [(NAME, tuned)])
    calls = [64, 128, 256, 128]
    monkeypatch.setattr(fla_tuning, "every_call", lambda *asked, **sizes: map(partial(call_of, tuned), calls))
    shares = []
    for index in range(3):
        tuned.fn.calls.clear()
        compiled = fla_tuning.compile_share(ASKED, torch.device("cpu"), index=index, count=3)
        assert compiled == len(tuned.fn.calls) and all(each["warmup"] for each in tuned.fn.calls)
        shares.append({(each["K"], each["BK"], each["num_warps"]) for each in tuned.fn.calls})
    every = {(dim, block, warps) for dim in (64, 128, 256) for block in (32, 64) for warps in (2, 4)}
    assert set.union(*shares) == every and sum(map(len, shares)) == len(every)


def test_the_launches_that_were_fastest_for_a_moment_are_timed_for_long(monkeypatch):
    briefly: list[dict[str, Any]] = []

    def do_bench(call: Callable[[], None], quantiles: object, **given: Any) -> list[float]:
        briefly.append(given)
        return [-float(len(briefly))] * 3

    timed: list[Callable[[], None]] = []
    tuned = autotuner(timed)
    monkeypatch.setattr("triton.testing.do_bench", do_bench)
    monkeypatch.setattr(fla_tuning, "kernels", lambda: [(NAME, tuned)])
    monkeypatch.setattr(fla_tuning, "FINALISTS", 2)
    fla_tuning.time_in_two_rounds()
    # The last two were the fastest for a moment. What is timed for long first, the last of all, counts as the fastest here.
    launch = call(tuned, 64)
    assert (launch["BK"], launch["num_warps"]) == (64, 4)
    assert briefly == [fla_tuning.BRIEFLY] * 4 and len(timed) == 2
    call(tuned, 128)
    assert len(briefly) == 8 and len(timed) == 4


def call_of(tuned: Autotuner, key_dim: int) -> None:
    q = torch.empty(2, key_dim)
    tuned.run(q, q, K=key_dim, warmup=False)


def key(dim: int, dtype: str, batch_size: int) -> dict[str, object]:
    return {"B": batch_size, "H": 8, "K": dim, "dtype": dtype}


def told(entries: tuple[launches.Entry, ...]) -> list[tuple[dict[str, Any], int, bool]]:
    return [(dict(each.where), each.launch["num_warps"], each.measured) for each in entries]


def test_what_was_timed_stands_before_what_the_table_had():
    two, four = ({"BK": 64, "num_warps": warps, "num_stages": 2} for warps in (2, 4))
    found = [(key(64, "bfloat16", 8), two), (key(64, "bfloat16", 4), four), (key(128, "float32", 8), two)]
    before = (entry(two, K=64, dtype="bfloat16"), entry(two, K=256, dtype="float32"), entry(four))
    assert told(fla_tuning.entries(found, before)) == [
        ({"K": 64, "dtype": "bfloat16"}, 4, True),
        ({"K": 128, "dtype": "float32"}, 2, True),
        ({"K": 256, "dtype": "float32"}, 2, False),
        ({}, 4, False),
    ]


def test_without_a_table_before_other_calls_get_what_the_largest_in_float32_needs():
    two, four = ({"BK": 64, "num_warps": warps, "num_stages": 2} for warps in (2, 4))
    found = [(key(64, "float32", 8), two), (key(128, "float32", 8), four), (key(256, "bfloat16", 8), two)]
    assert told(fla_tuning.entries(found, ()))[3:] == [({}, 4, False)]
    assert told(fla_tuning.entries(found[2:], ())) == [({"K": 256, "dtype": "bfloat16"}, 2, True)]


def test_what_tune_writes_is_read_as_it_was(tmp_path):
    table = launches.Table(card="a card", capability=HOPPER, versions=VERSIONS, made="2026-11-30", kernels={NAME: ENTRIES})
    path = tmp_path / "table.yaml"
    path.write_text(tuning.written(table))
    assert launches.read(path) == table
    assert yaml.safe_load(path.read_text())["kernels"][NAME][2]["where"] == {}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("ops=kdda", "ops=kdda is unknown, permitted are .*; did you mean kda?"),
        ("op=kda", "unknown key 'op'; did you mean ops?"),
        ("heads=48", "heads='48' is unknown, permitted are 16, 32, 64, 128, 256"),
        ("ops=kda heads=16", "heads='16' is out of range, permitted are 64 to 256 for ops=kda"),
        ("dtypes=float64", "dtypes=float64 is unknown, permitted are .*; did you mean float16?"),
        ("path=", "'path=' is not of the form path=VALUE"),
        ("path=/nowhere/table.yaml", "can't be written"),
        ("ops=kda", "tune can't run here: it needs a CUDA device"),
    ],
)
def test_a_wrong_request_to_tune_is_refused_in_a_line(typed, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match=said):
        tuning.tune(typed.split())
