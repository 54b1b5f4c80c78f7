"""`python -m launcher [+cluster=NAME] [key=value ...]`: see README.md.

Owns the exit status: 0 done, 1 the run failed, 2 the user's configuration or surroundings do not allow it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from launcher import actions
from launcher.config import load
from launcher.jobs import JobError
from launcher.models import ModelUnavailable
from launcher.refusal import Refused
from launcher.resume import AlreadyLive
from launcher.schema import Action, Config
from launcher.slurm import clean_environment
from launcher.start import CannotStart
from launcher.stopping import StillThere

ACTIONS: dict[Action, Callable[[Config], int]] = {
    Action.up: actions.up,
    Action.plan: actions.plan,
    Action.status: actions.status,
    Action.logs: actions.logs,
    Action.stop: actions.stop,
}


def main(arguments: Sequence[str]) -> int:
    clean_environment()
    try:
        config = load(arguments)
        return ACTIONS[config.action](config)
    except (Refused, ModelUnavailable, CannotStart, AlreadyLive, JobError, actions.NoSuchRun) as fault:
        print(fault, file=sys.stderr)
        return 2
    except StillThere as fault:
        print(fault, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
