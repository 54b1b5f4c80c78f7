"""A worker's task where no batch script of its own surrounds it: on this machine, or as a step of one large job.

Owns the shell's few lines in front of the interpreter. Starts nothing.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from launcher.job import JobRequest
from workers.agent.slurm_env import STARTED


def task_command(job: JobRequest, code_dir: Path) -> list[str]:
    """The site's set-up, then the interpreter in the snapshot of the code; its arguments follow."""
    code = shlex.quote(str(code_dir))
    lines = [
        f"export {STARTED}=$(date +%s)",
        *job.setup,
        f"cd {code}",
        f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}",
        f'exec {shlex.quote(job.interpreter)} "$@"',
    ]
    return ["bash", "-c", "\n".join(lines), "bash"]
