"""The documentation is true: commands run, links lead somewhere, named files and keys exist."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.config import known_keys, load
from launcher.schema import LimitsConfig
from tests.docs import HOW, PAGES, README, How, blocks, copy_checkout, shell, shown, shown_as
from tests.live import SOURCE

SCRIPTS = sorted(path for folder in ("slurm", "tests", ".ci") for path in (SOURCE / folder).iterdir() if path.is_file())
SHELL_SCRIPTS = [
    path for path in SCRIPTS if path.read_bytes()[:64].startswith((b"#!/bin/bash", b"#!/usr/bin/env bash"))
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = copy_checkout(tmp_path_factory.mktemp("docs") / "sluice")
    yield path
    shutil.rmtree(path)


# ---------------------------------------------------------------- commands


def test_every_command_that_is_shown_is_tested_and_the_other_way_round() -> None:
    assert set(shown()) == set(HOW), "tests/docs.py says how each command is tested"


def test_code_is_marked_as_what_it_is() -> None:
    """So that no command escapes by standing in an unmarked block."""
    languages = {(block.page.name, block.language) for page in PAGES for block in blocks(page)}
    assert not [pair for pair in languages if pair[1] not in ("sh", "text", "python", "yaml", "json")]


def unwrapped(command: str) -> tuple[str, str, str]:
    """The options, the script and the launcher's command line behind `sbatch`; any other command as it is."""
    submitted = re.fullmatch(r"sbatch ((?:--\S+ )*)(\S+) (.*)", command)
    if submitted is None:
        return "", "", command
    options, script, arguments = submitted.groups()
    [added] = re.findall(r'-m launcher "\$@" (.*)$', (SOURCE / script).read_text(), re.MULTILINE)
    return options, script, f"python -m launcher {arguments} {added}"


def test_plans_are_made_as_shown(checkout: Path) -> None:
    """In order: a page may copy a file and use it in the next line."""
    for command in shown():
        if HOW.get(command) not in (How.HERE, How.PLANNED, How.SUBMITTED, How.BATCHED):
            continue
        options, script, command = unwrapped(command)
        command = command.replace("action=batch", "action=plan")
        if command.startswith("python -m launcher") and "action=" not in command:
            command += " action=plan"
        answer = shell(command, checkout)
        assert answer.returncode == 0, f"{command}\n{answer.stderr}"
        if "launcher" in command:
            assert "#SBATCH --job-name=" in answer.stdout or "srun --jobid=" in answer.stdout, command
        proposed = script.replace("batch.sbatch", "one_allocation.sbatch")
        assert f"sbatch {options}{proposed}" in answer.stdout or not options, "the plan asks for other options"
        if "output=json" in command:
            assert set(json.loads(answer.stdout)) == {"plan", "scripts"}
    assert not (checkout / "runs").exists()


def test_predictions_are_made_as_shown(checkout: Path) -> None:
    for command in shown_as(How.PREDICTED):
        answer = shell(command, checkout)
        assert answer.returncode == 0, f"{command}\n{answer.stderr}"
        assert "step times: " in answer.stdout and "estimate" in answer.stdout
    assert not (checkout / "runs").exists()


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (package shellcheck)")
    answer = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_scripts_that_are_shown_are_among_them() -> None:
    for command in (each for each in shown() if each.startswith("sbatch ")):
        assert SOURCE / unwrapped(command)[1] in SHELL_SCRIPTS


def test_pip_is_shown_as_the_install_script_uses_it() -> None:
    script = (SOURCE / "slurm" / "install_cpu.sh").read_text().replace('"${here}[cpu,dev]"', "'.[cpu,dev]'")
    used = [part.strip() for part in re.split(r"\n|\|\|", script) if re.match(r" *pip (un)?install ", part)]
    shown_there = [part.strip() for command in shown_as(How.INSTALLED) for part in command.split("||")]
    assert used == [part for part in shown_there if part.startswith("pip")]


def test_the_packages_for_gpus_are_pinned() -> None:
    extras = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in shown_as(How.DECLARED):
        [extra] = re.findall(r"\[(\w+)\]", command)
        assert all("==" in requirement for requirement in extras[extra])


@pytest.mark.parametrize("target", ["help", "install", "serve", "check", "test", "unit", "bench-peers", "soak"])
def test_make_knows_its_targets(target: str) -> None:
    recipe = shell(f"make --dry-run --always-make {target}", SOURCE)
    assert recipe.returncode == 0, recipe.stderr
    does = {
        "test": "-m pytest",
        "check": "mypy",
        "serve": "-m launcher +cluster=local",
        "bench-peers": "-m benchmarks.peers",
        "soak": "-m benchmarks.chaos",
    }
    assert does.get(target, "") in recipe.stdout


# ---------------------------------------------------------------- what is named exists


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        assert "://" not in path, f"{target}: other sites go away; say it here"
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def quoted(page: Path) -> set[str]:
    """What stands in backticks in the running text."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`]+)`", prose))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """By their path, or by their bare name where the text has said the folder."""
    keys = set(known_keys())
    names = {path.name for folder in ("launcher", "workers", "proxy", "docs") for path in (SOURCE / folder).rglob("*")}
    for word in quoted(page):
        if re.fullmatch(r"[\w./-]+\.(py|md|sh|sbatch)", word) or re.match(r"(conf|slurm|tests|docs)/[\w./]*$", word):
            assert (SOURCE / word).exists() or word in names or word in keys, word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configuration_keys_that_are_named_exist(page: Path) -> None:
    known = set(known_keys())
    groups = {key for key in known if "." not in key}
    for word in quoted(page):
        group, _, rest = word.partition(".")
        if group in groups and re.fullmatch(r"[a-z_.]+", rest) and rest not in ("py", "json"):
            assert word in known, word


SETTING = re.compile(r"\+?[a-z][\w.]*=(?:\[[^\]]*\]|\S+)")
LEFT_OPEN = re.compile(r"\b[A-Z]{2,}\b|\.\.\.|\bmysite\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_are_named_can_be_made(page: Path) -> None:
    """Every `key=value` of the running text whose value is not left open. Fields of requests are no keys of ours."""
    heads = {key for key in known_keys() if "." not in key} | {path.name for path in (SOURCE / "conf").iterdir()}
    named = {setting for word in quoted(page) for setting in SETTING.findall(word) if not LEFT_OPEN.search(setting)}
    for setting in sorted(named):
        if re.split(r"[.=]", setting.lstrip("+"))[0] in heads:
            there = [] if re.match(r"\+(cluster|recipe)=", setting) else ["+cluster=h100x2"]
            load([*there, "name=new", setting])


SIZES = {"KiB": 1 << 10, "MiB": 1 << 20}


def test_the_limits_and_their_defaults_are_those_of_the_configuration() -> None:
    page = (SOURCE / "docs" / "security.md").read_text()
    told = {}
    for name, number, unit in re.findall(r"^\| `(\w+)` \| ([\d,]+) ?(\w*) \|", page, re.MULTILINE):
        told[name] = int(number.replace(",", "")) * SIZES.get(unit, 1)
    assert told == dataclasses.asdict(LimitsConfig())


OTHERS_WORDS = {"argument --...: invalid", "unexpected keyword", "wckey"}  # vLLM's and Slurm's


def test_messages_by_which_people_search_are_what_the_code_says() -> None:
    """In troubleshooting they stand in italics and begin small; dots and numbers stand for what differs."""
    page = " ".join((SOURCE / "docs" / "troubleshooting.md").read_text().split())
    files = [file for folder in ("launcher", "workers", "proxy") for file in (SOURCE / folder).rglob("*.py")]
    said = re.sub(r'"\s*f?"', "", " ".join(file.read_text() for file in files))
    messages = {text for text in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", page) if re.match(r"[a-z(]", text)}
    assert messages >= OTHERS_WORDS and len(messages) > 15
    for message in messages - OTHERS_WORDS:
        for part in re.split(r"\.\.\.|`|\d+|tcp://|Address already in use", message):
            assert part.strip(" ,.()") in said, message


def test_the_folders_are_told_of() -> None:
    tracked = {"launcher", "workers", "proxy", "benchmarks", "conf", "slurm", "tests", "docs"}
    assert {word.rstrip("/") for word in quoted(README) if re.fullmatch(r"\w+/", word)} == tracked
