"""The command line: python -m suite VERB [KEY=VALUE ...]."""

from __future__ import annotations

import errno
import io
import pkgutil
import sys
import warnings
from collections.abc import Sequence

from conf.extensions import extended
from conf.groups import groups
from conf.settings import RequestError, unknown
from suite.machine.environment import git_commit, package_versions
from suite.machine.ranks import check_single, leave
from suite.running.events import Share
from suite.running.hearing import Hearing
from suite.running.progress import duration
from suite.running.signals import INTERRUPTED, stop_once
from suite.store.foreign import reason_of, say, silence
from tasks.progress import heard

WHAT = {
    "run": "trains and evaluates: experiment=quick, or model=mesanet task=mqar train.lr=1e-3 seed=0,1,2",
    "evaluate": "adds evaluations to finished runs: run=ID|all eval=position,lm_eval; step=N after N steps; force=true again",
    "generate": "goes on with a text: run=ID prompt='Once upon' tokens=100 temperature=0.8 top_k=50 solver_steps=10",
    "export": "a trained model as a folder: run=ID to=native|hf path=FOLDER",
    "import": "a folder's model as a run: path=FOLDER, or from=hf path=FOLDER and its task, data=text data.tokenizer=...",
    "report": "draws a page: quick, or what was typed behind run, or where=CONDITIONS; alone, the index of a store",
    "list": "models | tasks | experiments | reports | evaluations | runs where='model=gla,train.lr<=1e-3' sort=accuracy",
    "status": "how far the sweeps of a store are: mad_small, or none for all; what is done, running, failed, missing, and left",
    "show": "everything about one run: run=ID, of which the beginning is enough; or what model=mesanet stands for",
    "check": "what a run would cost and be called, without running it: the keys of run, and show=config to see them all",
    "doctor": "versions, devices, and which backends work",
    "tune": "finds the fastest launches of fla's kernels on this GPU: ops=kda,gla heads=64,128 path=launches.yaml",
}
VERBS = {
    "run": "suite.running.requests:sweep",
    "evaluate": "suite.running.requests:add_evaluations",
    "generate": "suite.generate:generate_text",
    "export": "suite.exchange.outward:export_run",
    "import": "suite.exchange.inward:import_run",
    "report": "suite.reporting:report",
    "list": "suite.listing:list_names",
    "status": "suite.overview:tell_status",
    "show": "suite.showing:show",
    "check": "suite.running.requests:print_plan",
    "doctor": "suite.cli:doctor",
    "tune": "suite.machine.tuning:tune",
}
"""Where each verb is done: it takes the arguments, and returns its exit status or, of a verb that went well, what it says."""
USAGE = f"""usage: python -m suite VERB [KEY=VALUE ...], or lrs VERB [KEY=VALUE ...]

{chr(10).join(f"  {verb:9s} {what}" for verb, what in WHAT.items())}

A comma list runs every combination. extend=FOLDER, with any verb, adds models, tasks, figures and options of your own.
VERB --help lists the keys that a verb takes and what each permits, --version the version.
Exit status: 0 all done, 1 some run failed, 2 the request was wrong, 3 another process works on a run and compute.wait=false,
130 interrupted.
"""

OK, FAILED, WRONG = 0, 1, 2
# Verbs that import torch, for seconds, tell a person at once that they have begun.
SLOW = ("run", "evaluate", "check", "generate", "export", "import")
# Work of less is not told of while it goes on, and longer work so often.
QUIET_SECONDS, SHARE_SECONDS = 2.0, 5.0
# What a disk or its permissions do; any other OSError is a fault of ours, and gets its traceback.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR)
HELP, MULTIRUN, VERSION = ("-h", "--help"), ("-m", "--multirun"), ("--version", "-V")
FLAGS = (*HELP, *VERSION, *MULTIRUN)
KEYS = {*groups(), "seed", "backend", "run", "prompt", "where", "sort"}
"""Names that whoever types flags may mean."""
OWN_KEYS = {"list": "suite.listing:OWN", "report": "suite.reporting:OWN", "tune": "suite.machine.tuning:OWN"}
OWN_KEYS |= {"export": "suite.exchange.outward:OWN", "import": "suite.exchange.inward:OWN"}
"""Where a verb's keys stand that are no settings, each with what it is."""


def command() -> int:
    """The command line of a process of its own, as `lrs` and `python -m suite` call it."""
    stop_once()
    return leave(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that has no letter for something gets its number.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if arguments[:1] == ["help"]:
        # `help run` is `run --help`.
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in HELP:
        print(USAGE, end="")
        return OK if arguments else WRONG
    verb, rest = arguments[0], arguments[1:]
    try:
        _check_words(arguments)
        rest = extended(rest)
        if any(argument in VERSION for argument in arguments):
            version = package_versions()["linear-rnn-suite"]
            print(f"linear-rnn-suite {version or 'not installed'}, commit {git_commit() or 'unknown'}")
            return OK
        if verb not in VERBS:
            raise unknown("verb", verb, VERBS)
        if verb != "run":
            check_single(verb)
        if any(argument in HELP for argument in rest):
            print(_help(verb, [argument for argument in rest if argument not in HELP]))
            return OK
        with warnings.catch_warnings():
            # On one line, without the place in our code that gives it.
            warnings.showwarning = lambda message, *place: say(f"warning: {message}")
            if verb in SLOW and sys.stderr.isatty():
                say("reads the request ...")
            with heard(Hearing(_say_share, every=SHARE_SECONDS, quiet=QUIET_SECONDS)):
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


def _say_share(share: Share, what: str) -> None:
    if what:
        left = "" if share.seconds_left is None else f", {duration(share.seconds_left)} left"
        say(f"{what}: {100 * share.done / share.total:.0f} %{left}")


def _check_words(arguments: Sequence[str]) -> None:
    """Raises RequestError for what is no text, and for a flag that there is not: a comma list expands with or without -m."""
    for argument in arguments:
        # Bytes that are no text reach Python as surrogates.
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in argument):
            raise RequestError(f"{argument!a} is not UTF-8 text, permitted is UTF-8 without zero bytes")
    for argument in arguments:
        if argument.startswith("-") and argument not in FLAGS:
            name, separator, value = argument.lstrip("-").partition("=")
            if separator or name in KEYS or "." in name:
                typed = f"{name}={value if separator else 'VALUE'}"
                raise RequestError(f"{argument!r} is no flag: keys are typed without dashes, {typed} (flags: {', '.join(FLAGS)})")
            raise unknown("flag", argument, FLAGS)


def _help(verb: str, chosen: Sequence[str]) -> str:
    """What a verb does and every key that it takes, a line each. Raises RequestError."""
    from suite.help import keys_of

    own = pkgutil.resolve_name(OWN_KEYS[verb]) if verb in OWN_KEYS else {}
    keys = [f"  {key}={what}" for key, what in own.items()]
    return "\n".join([f"usage: python -m suite {verb}: {WHAT[verb]}", *keys, keys_of(verb, chosen)]).rstrip()


def doctor(arguments: Sequence[str]) -> str:
    from suite.machine.doctor import examine

    if arguments:
        raise RequestError(f"doctor takes no arguments, not {' '.join(arguments)!r}")
    return examine()
