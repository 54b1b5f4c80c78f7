"""The house rules: which way imports go, what may load what, and how large a piece may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import proxy

ROOT = Path(__file__).resolve().parent.parent.parent
LAYERS = ("workers", "proxy", "launcher", "benchmarks")  # each may import itself and those before it
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_bytes()) for path in FILES}
MODULES = {name: tree for name, tree in TREES.items() if tree.body}  # the packages' own files are empty

# Whose import takes seconds, and who may do it.
HEAVY = ("torch", "vllm", "transformers", "nixl", "hydra", "omegaconf", "submitit", "numpy")
ENGINE_ONLY = ("torch", "vllm", "transformers", "tokenizers", "nixl")
OWNERS = {
    "vllm": ("workers/engines/vllm", "benchmarks/batch_generate.py"),  # the last to compare with
    "torch": ("workers/engines/",),
    "transformers": ("workers/engines/",),
    "tokenizers": ("workers/engines/",),
    "hydra": ("launcher/config.py", "launcher/sweep.py"),
    "omegaconf": ("launcher/",),
    "submitit": ("launcher/scheduler/submit.py", "launcher/scheduler/local.py"),
    "rich": ("launcher/", "benchmarks/"),
}
# Processes that must start, answer and restart in no time. The controller hands jobs in, so it needs submitit.
LIGHT = {
    "proxy.__main__": (*HEAVY, "zmq", "prometheus_client", "httptools"),
    "proxy.processes.process": HEAVY,
    "workers.__main__": HEAVY,
    "workers.host.engine_process": HEAVY,
    "launcher.control.controller": tuple(name for name in HEAVY if name != "submitit"),
}

MAX_LINES = 350
MAX_FUNCTION_LINES = 60


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all that is imported, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute here"
            yield node.module


def at_import(tree: ast.Module) -> ast.Module:
    """Without what only runs in a function, or only for the type checker."""
    kept = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return ast.Module([node for node in kept if not isinstance(node, ast.If)], [])


def package(name: str) -> str:
    return name.partition(".")[0]


def offenders(found: Iterator[tuple[str, object]]) -> str:
    return "\n".join(f"{name}: {what}" for name, what in found)


# ---------------------------------------------------------------- which way imports go


def test_imports_go_one_way() -> None:
    def upward() -> Iterator[tuple[str, str]]:
        for name, tree in TREES.items():
            own = LAYERS.index(name.partition("/")[0])
            for imported in imports(tree):
                if package(imported) in LAYERS[own + 1 :] or package(imported) == "tests":
                    yield name, imported

    assert not offenders(upward())


def test_the_engines_libraries_are_known_to_their_adapters_only() -> None:
    def strangers() -> Iterator[tuple[str, str]]:
        for name, tree in TREES.items():
            for imported in imports(tree):
                if package(imported) in OWNERS and not name.startswith(OWNERS[package(imported)]):
                    yield name, imported

    assert not offenders(strangers())


def test_nothing_of_the_workers_contract_loads_an_engine() -> None:
    """Adapters import their engine in functions; only what vLLM itself loads may do it on top."""
    below = ("workers/engines/vllm/calls.py", "workers/engines/tiny_model.py")

    def loading() -> Iterator[tuple[str, str]]:
        for name, tree in TREES.items():
            for imported in imports(at_import(tree)):
                if package(imported) in ENGINE_ONLY and name not in below:
                    yield name, imported

    assert not offenders(loading())


@pytest.mark.parametrize("module", LIGHT)
def test_a_process_that_must_start_at_once_loads_nothing_heavy(module: str) -> None:
    program = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = json.loads(answer.stdout)
    assert not [name for name in LIGHT[module] if name in loaded]


# ---------------------------------------------------------------- packages


def test_the_proxy_that_is_imported_is_ours() -> None:
    """Another distribution has a package of this name."""
    assert Path(proxy.__file__ or "").resolve() == ROOT / "proxy" / "__init__.py"


def test_the_packages_that_are_installed_are_the_folders_that_exist() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES}
    assert sorted(listed) == sorted(folders)
    assert all((ROOT / name.replace(".", "/") / "__init__.py").exists() for name in listed)


# ---------------------------------------------------------------- sizes and habits


def test_no_file_is_too_long_to_read() -> None:
    sizes = {name: len((ROOT / name).read_text().splitlines()) for name in TREES}
    assert not offenders((name, size) for name, size in sizes.items() if size > MAX_LINES)


def test_no_function_is_too_long_to_read() -> None:
    def long() -> Iterator[tuple[str, str]]:
        for name, tree in TREES.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    size = (node.end_lineno or node.lineno) - node.lineno + 1
                    if size > MAX_FUNCTION_LINES:
                        yield name, f"{node.name}: {size} lines"

    assert not offenders(long())


def test_every_module_says_what_it_is() -> None:
    assert not [name for name, tree in MODULES.items() if not ast.get_docstring(tree)]


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"util", "utils", "helpers", "helper", "misc", "common"}
    assert not [name for name in TREES if drawers.intersection(Path(name).with_suffix("").parts)]


def test_no_error_is_swallowed_whole() -> None:
    """A bare `except`, or one of everything that does nothing about it."""

    def swallowing() -> Iterator[tuple[str, int]]:
        for name, tree in TREES.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ExceptHandler) and (node.type is None or _of_everything(node)):
                    yield name, node.lineno

    assert not offenders(swallowing())


def _of_everything(handler: ast.ExceptHandler) -> bool:
    caught = {node.id for node in ast.walk(handler.type or handler) if isinstance(node, ast.Name)}
    does_nothing = all(isinstance(node, ast.Pass | ast.Continue) for node in handler.body)
    return bool(caught & {"Exception", "BaseException"}) and does_nothing
