"""`python -m launcher [+cluster=NAME] [key=value ...]`: see README.md.

Owns the exit status: 0 done, 1 the run failed, 2 the user's configuration or surroundings do not allow it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from launcher import actions
from launcher.batch.action import batch
from launcher.config import choices, load
from launcher.connect.action import connect
from launcher.jobs import JobError
from launcher.multirun import plan_all
from launcher.planning.models import ModelUnavailable
from launcher.profiling.action import profile
from launcher.refusal import Refused
from launcher.resume import AlreadyLive
from launcher.scheduler.slurm import clean_environment
from launcher.schema import Action, Config
from launcher.site.doctor import doctor
from launcher.site.new_cluster import new_cluster
from launcher.start import CannotStart
from launcher.stopping import StillThere
from launcher.twin.capacity import capacity
from launcher.twin.simulate import simulate

USAGE = """\
python -m launcher +cluster=NAME [model=NAME] [run=NAME] [key=value ...]   start a run
python -m launcher +recipe=NAME [run=NAME] [key=value ...]                 the same: cluster, model and split at once
python -m launcher +cluster=NAME ... action=plan [output=json]             what would run; changes nothing
python -m launcher -m ... key=value,value ... action=plan                  one plan per combination
python -m launcher action=status run=NAME [output=json]
python -m launcher action=report run=NAME [output=json]                     GPU hours, requests, tokens, events
python -m launcher action=connect run=NAME [port=8000] [ssh=LOGIN]          a local port that stays at the endpoint
python -m launcher action=logs run=NAME worker=NAME [follow=true]
python -m launcher action=restart run=NAME [code=current]                   worker by worker, while it serves
python -m launcher +cluster=NAME ... run=NAME key=value action=restart      the same with other settings or sizes
python -m launcher action=stop run=NAME
python -m launcher action=batch run=NAME batch.input=FILE batch.output=FILE   requests from a file, results into one
python -m launcher +cluster=NAME ... action=batch batch.input=...             the same on a run of its own
python -m launcher +cluster=NAME ... action=simulate [workload.trace=FILE]    what it would do with a workload
python -m launcher +cluster=NAME ... action=capacity [workload.rate=N] [name=NAME]   how many GPUs, which split
python -m launcher action=profile run=NAME [profile.time_limit_s=600]         how fast its engines are, step by step
python -m launcher action=doctor [+cluster=NAME] [submit=true] [output=json]   what the site is like, what to set
python -m launcher action=new-cluster name=NAME                            writes conf/cluster/NAME.yaml

clusters: {clusters}
recipes: {recipes}
models: {models}
Every key of conf/ can be set; a wrong one is answered with the closest known one. More in README.md."""

MULTIRUN = {"-m", "--multirun"}
INTERRUPTED = 130
READER_GONE = 141  # as a shell reports SIGPIPE

ACTIONS: dict[Action, Callable[[Config], int]] = {
    Action.up: actions.up,
    Action.plan: actions.plan,
    Action.status: actions.status,
    Action.report: actions.report,
    Action.connect: connect,
    Action.logs: actions.logs,
    Action.restart: actions.restart,
    Action.stop: actions.stop,
    Action.doctor: doctor,
    Action.new_cluster: new_cluster,
    Action.batch: batch,
    Action.simulate: simulate,
    Action.capacity: capacity,
    Action.profile: profile,
}


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"}.intersection(arguments):
        groups = {f"{group}s": ", ".join(choices(group)) for group in ("cluster", "recipe", "model")}
        print(USAGE.format(**groups))
        return 0
    clean_environment()
    try:
        status = _act(arguments)
        sys.stdout.flush()
        return status
    except (Refused, ModelUnavailable, CannotStart, AlreadyLive, JobError, actions.NoSuchRun) as fault:
        print(fault, file=sys.stderr)
        return 2
    except StillThere as fault:
        print(fault, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
        return READER_GONE
    except OSError as fault:
        if fault.filename is None:
            raise
        print(f"{fault.filename}: {fault.strerror}; run and runs_dir say where a run lies", file=sys.stderr)
        return 2


def _act(arguments: Sequence[str]) -> int:
    if MULTIRUN.intersection(arguments):
        return plan_all([argument for argument in arguments if argument not in MULTIRUN])
    config = load(arguments)
    return ACTIONS[config.action](config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
