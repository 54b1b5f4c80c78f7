"""What the documentation shows, and how each command in it is tested.

A command that is shown and not listed here fails `tests/unit/test_docs.py`; so does one that is listed and no longer
shown.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from tests.live import SOURCE

README = SOURCE / "README.md"
PAGES = (README, *sorted((SOURCE / "docs").glob("*.md")))
CHECKOUT = ("launcher", "workers", "proxy", "benchmarks", "conf", "slurm", "pyproject.toml", "README.md")


class How(Enum):
    """How a shown command is tested, and where."""

    HERE = "run in a copy of the checkout: unit/test_docs.py"
    PREDICTED = "its prediction is made there"
    PLANNED = "its plan is made there; such runs come up in e2e/ and on the one-box Slurm"
    SUBMITTED = "its script is checked and its arguments planned there; it runs on the one-box Slurm"
    LIVE = "run against a run of simulated engines: integration/test_docs_commands.py"
    CONNECTED = "run with a free port and a stand-in for ssh: integration/test_connect.py"
    INSTALLED = "run in a fresh environment: integration/test_install.py"
    DECLARED = "needs a GPU's packages: unit/test_docs.py looks at what it would install"
    MAKE = "what make would do is looked at: unit/test_docs.py; `make test` is what runs all this"
    SMALL = "run at its smallest: integration/test_benchmark_*.py"
    CASES = "its cases are those of e2e/test_vllm_prefixes.py; what it makes of them: unit/test_benchmark_resync.py"
    PROFILED = "run against a small simulated engine: integration/test_profile.py"
    SITE = "run on the one-box Slurm: integration/test_onebox_doctor.py"
    BATCHED = "its plan is made there; batches run so in integration/test_batch.py and on the one-box Slurm"


READ = 'curl -sS -H "Authorization: Bearer $(cat runs/demo/keys/reader_key)"'
HOW = {
    # README.md
    "make serve": How.LIVE,
    "make test": How.MAKE,
    "python3 -m venv .venv": How.INSTALLED,
    ". .venv/bin/activate": How.INSTALLED,
    "pip install -e '.[cpu,dev]' ||"
    " pip install -e '.[cpu,dev]' --extra-index-url https://download.pytorch.org/whl/cpu": How.INSTALLED,
    "pip install --no-deps nixl==1.5.1 nixl-cu12==1.5.1": How.INSTALLED,
    "pip uninstall --yes torchvision torchaudio torchcodec": How.INSTALLED,
    "pip install -e '.[cuda]'": How.DECLARED,
    "python -m launcher +cluster=h100x2 model=llama-3.3-70b run=demo action=plan": How.HERE,
    "python -m launcher +cluster=h100x2 model=llama-3.3-70b run=demo action=plan output=json": How.HERE,
    "python -m launcher +cluster=h100x2 model=llama-3.3-70b run=demo": How.PLANNED,
    "python -m launcher +cluster=h100x1 model=llama-3.1-8b action=simulate workload.rate=5": How.PREDICTED,
    "python -m launcher +cluster=h100x1 model=llama-3.1-8b action=capacity workload.rate=40"
    " predict.output=out/capacity": How.PREDICTED,
    "python -m launcher action=profile run=demo": How.PROFILED,
    "python -m launcher action=status run=demo": How.LIVE,
    "python -m launcher action=status run=demo output=json": How.LIVE,
    "python -m launcher action=connect run=demo port=8000": How.CONNECTED,
    "python -m launcher action=connect run=demo port=8000"
    " ssh=login.example.org runs_dir=/scratch/me/runs": How.CONNECTED,
    "python -m launcher action=report run=demo": How.LIVE,
    "python -m launcher action=report run=demo output=json": How.LIVE,
    "python -m launcher action=logs run=demo worker=decode-0": How.LIVE,
    "python -m launcher action=logs run=demo worker=decode-0 follow=true": How.LIVE,
    "python -m launcher action=stop run=demo": How.LIVE,
    "sbatch slurm/controller.sbatch +cluster=h100x2 model=llama-3.3-70b run=demo": How.SUBMITTED,
    "python -m launcher +cluster=h100x2 model=llama-3.3-70b run=demo"
    " cluster.executor=steps controller.where=foreground action=plan": How.HERE,
    "sbatch --nodes=2 --ntasks-per-node=1 --cpus-per-task=96 --gpus-per-node=8 --mem=960G --time=480"
    " slurm/one_allocation.sbatch +cluster=h100x2 model=llama-3.3-70b run=demo": How.SUBMITTED,
    "python -m launcher action=new-cluster name=mysite": How.SITE,
    "python -m launcher action=doctor +cluster=mysite": How.SITE,
    "python -m launcher action=doctor +cluster=mysite submit=true": How.SITE,
    "python -m launcher action=doctor": How.SITE,
    "cp conf/cluster/h100x2.yaml conf/cluster/mysite.yaml": How.HERE,
    "python -m launcher +cluster=mysite model=llama-3.1-8b action=plan": How.HERE,
    "python -m launcher +cluster=mysite model=llama-3.1-8b cluster.chain_length=5 action=plan": How.HERE,
    "python -m launcher +cluster=mysite model=llama-3.1-8b cluster.max_loading=8"
    " cluster.load_strategy=prefetch action=plan": How.HERE,
    "python -m launcher +recipe=gpt-oss-120b-h100 cluster.partition=gpu cluster.account=me action=plan": How.HERE,
    "python -m launcher -m +recipe=gpt-oss-120b-h100,llama-3.3-70b-h100 action=plan": How.HERE,
    "python -m launcher -m +cluster=h100x2 pools.decode.tensor_parallel=4 pools.decode.replicas=1,2"
    " action=plan": How.HERE,
    "python -m benchmarks.proxy": How.SMALL,
    "python -m benchmarks.cores": How.SMALL,
    "python -m benchmarks.streams": How.SMALL,
    "python -m benchmarks.batch": How.SMALL,
    "python -m benchmarks.batch_cost": How.SMALL,
    "python -m benchmarks.batch_memory": How.SMALL,
    "python -m benchmarks.batch_beside": How.SMALL,
    "python -m benchmarks.batch_kills": How.SMALL,
    "python -m benchmarks.routing": How.SMALL,
    "python -m benchmarks.routing trace=conversation_trace.jsonl policies=kv,dynamo,round_robin loads=0.9": How.SMALL,
    "python -m benchmarks.roles": How.SMALL,
    "python -m benchmarks.resync": How.CASES,
    "python -m benchmarks.forecast": How.SMALL,
    "python -m benchmarks.capacity": How.SMALL,
    "python -m benchmarks.twin": How.SMALL,
    "python -m benchmarks.planner": How.SMALL,
    "python -m benchmarks.chaos": How.SMALL,
    "python -m benchmarks.chaos rows=rolling_restart,scancel_decode": How.SMALL,
    "make bench-peers": How.MAKE,
    "make bench-peers ARGS='peers=vllm-router,sluice parts=streams,prompts repeats=1'": How.SMALL,
    "python -m launcher action=batch run=demo batch.input=prompts.jsonl batch.output=results.jsonl": How.LIVE,
    # docs/batches.md
    "python -m launcher +cluster=h100x2 model=llama-3.3-70b run=bulk action=batch"
    " batch.input=prompts.jsonl batch.output=results.jsonl": How.BATCHED,
    "sbatch --nodes=2 --ntasks-per-node=1 --cpus-per-task=96 --gpus-per-node=8 --mem=960G --time=480"
    " slurm/batch.sbatch +cluster=h100x2 model=llama-3.3-70b"
    " batch.input=prompts.jsonl batch.output=results.jsonl": How.BATCHED,
    # docs/monitoring.md
    f"{READ} http://HOST:PORT/fleet": How.LIVE,
    f"{READ} http://HOST:PORT/metrics": How.LIVE,
    f"{READ} http://HOST:PORT/workers/decode-0/metrics": How.LIVE,
    # docs/operating.md
    "python -m launcher +cluster=mysite model=llama-3.1-8b run=demo": How.PLANNED,
    "python -m launcher action=restart run=demo": How.LIVE,
    "python -m launcher +cluster=mysite model=llama-3.1-8b engine=sim run=dry action=plan": How.HERE,
    # docs/troubleshooting.md
    "python -m launcher action=logs run=demo worker=proxy-0": How.LIVE,
    # docs/security.md
    "python -m launcher +cluster=h100x2 run=demo"
    " proxy.tls_cert=/path/cert.pem proxy.tls_key=/path/key.pem action=plan": How.HERE,
    "ssh -N -L 8000:HOST:PORT login.example.org": How.CONNECTED,
}


class Block(NamedTuple):
    """One code fence."""

    page: Path
    heading: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [re.sub(r" +", " ", line.strip()) for line in lines if line.strip() and not line.startswith("#")]


def blocks(page: Path) -> Iterator[Block]:
    heading, language = "", None
    lines: list[str] = []
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            if language is not None:
                yield Block(page, heading, language, "\n".join(lines))
            language, lines = (line[3:].strip(), []) if language is None else (None, [])
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert language is None, f"{page.name}: a code fence is not closed"


def shown() -> list[str]:
    """All commands of all pages, in order."""
    return [command for page in PAGES for block in blocks(page) if block.language == "sh" for command in block.commands]


def shown_as(how: How) -> list[str]:
    """Those that are tested so; a command that is not listed is `unit/test_docs.py`'s to report."""
    return [command for command in shown() if HOW.get(command) is how]


def copy_checkout(target: Path) -> Path:
    """What a user has after cloning, as far as the commands need it; the tests may write into it."""
    target.mkdir()
    for name in CHECKOUT:
        source = SOURCE / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target / name)
    return target


def activated() -> dict[str, str]:
    """The environment of a shell in which this interpreter's environment is active."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**clean, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env={**activated(), **environment}, capture_output=True, text=True
    )
