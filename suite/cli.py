"""The command line: python -m suite VERB [KEY=VALUE ...]."""

from __future__ import annotations

import errno
import io
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from conf.settings import RequestError, unknown
from suite.machine.environment import git_commit, package_versions
from suite.running.signals import stop_once
from suite.store.foreign import reason_of, say, silence

WHAT = {
    "run": "trains and evaluates: experiment=quick, or model=mesanet task=mqar train.lr=1e-3 seed=0,1,2",
    "evaluate": "adds evaluations to finished runs: run=ID|all eval=position,lm_eval; force=true makes them again",
    "generate": "goes on with a text: run=ID prompt='Once upon' tokens=100 temperature=0.8 top_k=50 solver_steps=10",
    "report": "draws an experiment's report: quick",
    "list": "models | tasks | experiments | reports | runs",
    "check": "what a run would cost and be called, without running it: the keys of run, and show=config to see them all",
    "doctor": "versions, devices, and which backends work",
}
VERBS = {
    "run": "suite.running.requests:sweep",
    "evaluate": "suite.running.requests:add_evaluations",
    "generate": "suite.generate:generate_text",
    "report": "suite.cli:report",
    "list": "suite.cli:list_names",
    "check": "suite.running.requests:print_plan",
    "doctor": "suite.cli:doctor",
}
"""Where each verb is done: it takes the arguments, and returns its exit status or, of a verb that went well, what it says."""
USAGE = f"""usage: python -m suite VERB [KEY=VALUE ...], or lrs VERB [KEY=VALUE ...]

{chr(10).join(f"  {verb:9s} {what}" for verb, what in WHAT.items())}

A comma list runs every combination. VERB --help lists the keys that a verb takes and what each permits, --version the version.
Exit status: 0 all done, 1 some run failed, 2 the request was wrong, 3 another process works on a run and compute.wait=false,
130 interrupted.
"""

OK, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
# What a disk or its permissions do; any other OSError is a fault of ours, and gets its traceback.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR)
HELP, MULTIRUN = ("-h", "--help"), ("-m", "--multirun")


def command() -> int:
    """The command line of a process of its own, as `lrs` and `python -m suite` call it."""
    stop_once()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no letter for something gets its number.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in (*HELP, "help"):
        print(USAGE, end="")
        return OK if arguments else WRONG
    verb, rest = arguments[0], arguments[1:]
    try:
        _check_words(arguments)
        if verb == "--version":
            version = package_versions()["linear-rnn-suite"]
            print(f"linear-rnn-suite {version or 'not installed'}, commit {git_commit() or 'unknown'}")
            return OK
        if verb not in VERBS:
            raise unknown("verb", verb, VERBS)
        if any(argument in HELP for argument in rest):
            from suite.help import keys_of

            keys = keys_of(verb, [argument for argument in rest if argument not in HELP])
            print(f"usage: python -m suite {verb}: {WHAT[verb]}\n{keys}".rstrip())
            return OK
        with warnings.catch_warnings():
            # On one line, without the place in our code that gives it.
            warnings.showwarning = lambda message, *place: say(f"warning: {message}")
            made = pkgutil.resolve_name(VERBS[verb])([argument for argument in rest if argument not in MULTIRUN])
            if isinstance(made, str):
                print(made)
        sys.stdout.flush()
        return OK if isinstance(made, str) else made
    except RequestError as error:
        say(f"error: {error}")
        return WRONG
    except BrokenPipeError:
        # Whoever read along has seen enough, as `| head` has; what Python still writes at exit must find a place to go.
        silence(sys.stdout)
        return OK
    except OSError as error:
        if error.errno not in DISK:
            raise
        say(f"error: {reason_of(error)}")
        return FAILED
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint")
        return INTERRUPTED


def _check_words(arguments: Sequence[str]) -> None:
    """Raises RequestError for what is no text, and for a flag that there is not: a comma list expands with or without -m."""
    for argument in arguments:
        # Bytes that are no text reach Python as surrogates.
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in argument):
            raise RequestError(f"{argument!a} is not UTF-8 text, permitted is UTF-8 without zero bytes")
    for argument in arguments[1:]:
        if argument.startswith("-") and argument not in (*HELP, *MULTIRUN):
            raise unknown("flag", argument, (*HELP, "--version", *MULTIRUN))


def report(arguments: Sequence[str]) -> str:
    import yaml

    from conf.groups import CONF, options
    from reports.kit.build import build_report
    from reports.kit.parts import load_frames
    from suite.request.compose import compose_one

    names, overrides = _split(arguments)
    if len(names) != 1:
        raise RequestError(f"report takes one name (permitted: {', '.join(options('report'))})")
    if names[0] not in options("report"):
        raise unknown("report", names[0], options("report"))
    paths = compose_one(overrides).paths
    page = yaml.safe_load((CONF / "report" / f"{names[0]}.yaml").read_text())
    try:
        frames = load_frames(Path(paths.results), page["experiment"])
    except ValueError as error:
        raise RequestError(str(error)) from error
    index = build_report(page, frames, Path(paths.reports) / names[0])
    missing = frames.cells[frames.cells["status"] != "done"]
    return f"{index}  ({len(frames.cells)} runs asked for, {len(missing)} of them not done)"


def list_names(arguments: Sequence[str]) -> str | int:
    from conf.groups import options
    from suite.request.compose import compose_one

    kinds = {"models": "model", "tasks": "task", "experiments": "experiment", "reports": "report"}
    names, overrides = _split(arguments)
    if len(names) != 1 or names[0] not in (*kinds, "runs"):
        raise unknown("list", " ".join(names), (*kinds, "runs"))
    if names[0] != "runs":
        return "\n".join(options(kinds[names[0]]))
    from suite.results import load_runs

    results = Path(compose_one(overrides).paths.results)
    if not results.is_dir():
        raise RequestError(f"paths.results={results} is no folder; permitted is one that `run` has made")
    try:
        rows = load_runs(results).itertuples()
    except ValueError as error:
        # An empty store has nothing to list.
        say(error)
        return OK
    lines = (f"{row.run_id}  {row.status:12s} {row.model} {row.size} {row.task} seed {row.seed} {row.reason}" for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def doctor(arguments: Sequence[str]) -> str:
    from suite.machine.doctor import examine

    if arguments:
        raise RequestError(f"doctor takes no arguments, not {' '.join(arguments)!r}")
    return examine()


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names and overrides, of which only paths have a meaning here."""
    names = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    for override in overrides:
        if not override.startswith("paths."):
            raise RequestError(f"{override!r} has no meaning here, permitted are paths.results and paths.reports")
    return names, overrides
