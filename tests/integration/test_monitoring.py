"""What docs/monitoring.md tells people to give to Prometheus and Grafana, with the real Prometheus and real answers."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from launcher.planner.word import caps_of
from proxy.monitoring.counsel import counsel_gauges
from proxy.spec import RoutingSpec
from tests.docs import blocks
from tests.live import READER_KEY, SOURCE, Live, live, sim_engine, wait_for
from tests.unit.test_scale import word

PAGE = SOURCE / "docs" / "monitoring.md"
SCRAPING, ALERTS = [block.text for block in blocks(PAGE) if block.language == "yaml"]
DASHBOARD = json.loads((SOURCE / "docs" / "grafana.json").read_text())
VARIABLES = {"$run": "test", "$worker": ".*", "$__rate_interval": "5s"}
METRIC = re.compile(r"\b(?:sluice_|vllm:)[a-z_]+")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    workers = {"prefill-0": sim_engine(), "decode-0": sim_engine()}
    routing = RoutingSpec(policy="kv", allow_override=True)  # the one that has figures of caches to tell
    with live(tmp_path_factory.mktemp("monitoring") / "run", workers, routing=routing) as started:
        (started.path / "keys" / "reader_key").write_text(READER_KEY)
        ask(started)
        yield started


def ask(run: Live) -> None:
    """One request of every way that is drawn: split and streaming, whole, refused."""
    splits = {"x-sluice-policy": "least_loaded"}  # whatever would take the least time
    with run.client() as client:
        for body in ({"prompt": "word " * 200, "stream": True}, {"prompt": "x"}, {"prompt": "x", "max_tokens": "y"}):
            client.post("/v1/completions", json={"model": "tiny", "max_tokens": 8, **body}, headers=splits)


def queries() -> list[str]:
    exprs = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [filled(expr) for expr in exprs]


def filled(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def names(text: str) -> set[str]:
    return set(METRIC.findall(text))


def exposed(text: str) -> set[str]:
    """Names of the series in a /metrics answer."""
    return {re.split(r"[{ ]", line, maxsplit=1)[0] for line in text.splitlines() if not line.startswith("#")}


# ---------------------------------------------------------------- names


def test_every_metric_of_the_dashboard_and_of_the_page_exists(run: Live) -> None:
    with run.client(READER_KEY) as client:
        targets = client.get("/metrics/targets").json()
        told = {name for each in targets for name in exposed(client.get(each["labels"]["__metrics_path__"]).text)}
    variables = [str(variable["query"]) for variable in DASHBOARD["templating"]["list"]]
    drawn = names(" ".join([*queries(), *variables]))
    # Only Slurm gives a job an end: unit/test_overview.py looks at this one.
    assert drawn - told == {"sluice_worker_end_time_seconds"}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in told if name.startswith("sluice_")}
    planner = {name for name, _, _ in counsel_gauges(caps_of(word(), {}, {}, 101.0))}  # this run has none
    assert families | planner == names(PAGE.read_text()) - {"sluice_worker_end_time_seconds"}


def test_the_dashboard_is_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [tuple(panel["gridPos"].values()) for panel in panels]
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["type"] == "row" or panel["targets"], panel["title"]
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


# ---------------------------------------------------------------- a real Prometheus


@contextmanager
def prometheus(run: Live, folder: Path) -> Iterator[httpx.Client]:
    """With the page's own configuration, in a hurry."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not on this machine (package prometheus)")
    scraping = SCRAPING.replace("HOST:PORT", run.url.removeprefix("http://")).replace("15s", "250ms")
    config = {**yaml.safe_load(scraping.replace("/path/runs/demo", str(run.path))), "rule_files": ["alerts.yaml"]}
    (folder / "alerts.yaml").write_text(ALERTS)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    checked = subprocess.run(
        ["promtool", "check", "config", folder / "prometheus.yaml"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--log.level=warn"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", trust_env=False) as client:
            wait_for(lambda: answers(client) or process.poll() is not None, "Prometheus to answer")
            assert process.poll() is None, (folder / "log").read_text()
            yield client
    finally:
        process.terminate()
        process.wait()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/status/runtimeinfo").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.prometheus
def test_prometheus_scrapes_what_it_is_told_and_answers_every_panel(run: Live, tmp_path: Path) -> None:
    with prometheus(run, tmp_path) as client:
        wait_for(lambda: len(scraped(client)) == 3, "all targets to be scraped")
        up = {(target["labels"].get("worker"), target["labels"].get("role")) for target in scraped(client)}
        assert up == {(None, None), ("prefill-0", "prefill"), ("decode-0", "decode")}
        assert {target["labels"]["run"] for target in scraped(client)} == {"test"}
        left = [query for query in queries() if "end_time" not in query and "prefix_cache" not in query]

        def all_answered() -> bool:
            ask(run)
            left[:] = [query for query in left if not result(client, query)]
            return not left

        wait_for(all_answered, f"an answer to {left}")
        for rule in yaml.safe_load(ALERTS)["groups"][0]["rules"]:
            assert result(client, rule["expr"]) == [], "nothing is wrong"


def scraped(client: httpx.Client) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = client.get("/targets").json()["data"]["activeTargets"]
    return [target for target in targets if target["health"] == "up"]


def result(client: httpx.Client, query: str) -> list[Any]:
    answer = client.get("/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    series: list[Any] = answer["data"]["result"]
    return series
