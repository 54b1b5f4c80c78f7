"""A fleet as people draw it on a whiteboard, of real processes with simulated engines, and the page that draws it.

Three nodes of eight GPUs, by what Slurm would tell the agents: two workers prefill, two decode, one loads; a sixth
waits for its job, and so does the successor of one that is soon to end. `python -m tests.whiteboard SECONDS FILE` takes
its picture after so long under load.
"""

from __future__ import annotations

import asyncio
import io
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.control.proxy_links import ProxyLinks
from launcher.rundir import RunDir
from tests.live import API_KEY, Live, sim_engine, wait_for
from workers.controller_messages import Jobs, JobView

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
RUN, MODEL = "demo", "llama-3.3-70b"
LOADING, PENDING, ENDING = "decode-2", "decode-3", "decode-1"
PLACES = {
    "prefill-0": ("gpu-01", "0,1,2,3", "4211", 3.2),
    "prefill-1": ("gpu-01", "4,5,6,7", "4212", 2.1),
    "decode-0": ("gpu-02", "0,1,2,3", "4213", 3.2),
    ENDING: ("gpu-02", "4,5,6,7", "4214", 0.2),
    LOADING: ("gpu-03", "0,1,2,3", "4215", 4.0),
}
READY = [worker for worker in PLACES if worker != LOADING]
TIMING = {"prefill_ms": [0, 0.02, 6], "decode_ms": [4, 6, 9]}


@contextmanager
def fleet(path: Path) -> Iterator[Live]:
    """Until its ready part serves."""
    run = Live(path, run=RUN, models=(MODEL,))
    try:
        run.start_proxy({worker: worker.rsplit("-", 1)[0] for worker in (*PLACES, PENDING)})
        for index, (worker, (node, gpus, job, hours)) in enumerate(PLACES.items()):
            args: dict[str, Any] = {"num_blocks": 2048, "timing": TIMING}
            engine = sim_engine(
                served_names=(MODEL,),
                tensor_parallel=4,
                args=args | ({"load_time_s": 3600} if worker == LOADING else {}),
            )
            environment = {"SLURM_JOB_ID": job, "SLURMD_NODENAME": node, "SLURM_STEP_GPUS": gpus}
            end = {"SLURM_JOB_END_TIME": str(int(time.time() + 3600 * hours))}
            run.start_worker(worker, engine, index=index, **environment, **end)
        with controller(run):
            wait_for(lambda: proven(run), "the ready part of the fleet to serve", 60)
            yield run
    finally:
        run.stop()


def proven(run: Live) -> bool:
    pairs = run.fleet()["pairs"]
    return len(pairs) == 4 and all(pair["proven"] for pair in pairs)


@contextmanager
def controller(run: Live) -> Iterator[None]:
    """The launcher's own link, with a word on the jobs as Slurm would tell them."""
    loop, done = asyncio.new_event_loop(), asyncio.Event()

    async def report() -> None:
        links = ProxyLinks(RunDir(run.path), RUN, "p0", lambda view: None)
        links.tell(jobs())
        searching = asyncio.create_task(links.run())
        await done.wait()
        searching.cancel()
        links.close("the test ends")

    thread = threading.Thread(target=loop.run_until_complete, args=(report(),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


def jobs() -> Jobs:
    size = {"num_nodes": 1, "gpus": 4, "tensor_parallel": 4}
    placed = [
        JobView(worker, *2 * (worker.rsplit("-", 1)[0],), 0, job, "RUNNING", node=node, nodes=(node,), **size)
        for worker, (node, _, job, _) in PLACES.items()
    ]
    expected = time.strftime("%Y-%m-%dT%H:%M:00", time.localtime(time.time() + 2400))
    waiting = [
        JobView(PENDING, "decode", "decode", 0, "4219", "PENDING", "Resources", expected, **size),
        JobView(ENDING, "decode", "decode", 1, "4220", "PENDING", "QOSMaxGRESPerUser", **size),
    ]
    return Jobs((*placed, *waiting), 8)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine. Skips the test where there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium on this machine (package chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path)
        yield started
        started.close()


# ---------------------------------------------------------------- a picture of it


@contextmanager
def load(run: Live, requests_per_s: float) -> Iterator[None]:
    """Streams of mixed lengths, at random times."""
    stop, rng = threading.Event(), random.Random(1)

    async def ask(client: httpx.AsyncClient) -> None:
        prompt = f"{rng.random()} " + "word " * rng.choice([80, 200, 400, 800])
        body = {"model": MODEL, "prompt": prompt, "max_tokens": rng.choice([60, 150, 300]), "ignore_eos": True}
        await client.post("/v1/completions", json={**body, "stream": True})

    async def ask_on() -> None:
        headers = {"authorization": f"Bearer {API_KEY}"}
        async with (
            httpx.AsyncClient(base_url=run.url, headers=headers, timeout=60) as client,
            asyncio.TaskGroup() as group,
        ):
            while not stop.is_set():
                group.create_task(ask(client))
                await asyncio.sleep(rng.expovariate(requests_per_s))

    thread = threading.Thread(target=lambda: asyncio.run(ask_on()))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def small(png: bytes) -> Any:
    """With a palette: the drawing has few colours."""
    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB").quantize(255, dither=Image.Dither.NONE)


def take_picture(seconds: float, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, fleet(Path(folder) / "run") as run, browser() as started:
        page = started.new_page(viewport={"width": 1440, "height": 900})
        page.goto(run.url)
        page.fill("#key", API_KEY)
        page.press("#key", "Enter")
        with load(run, 5.0):
            page.wait_for_timeout(1000 * seconds)
            small(page.screenshot(full_page=True)).save(target, optimize=True)


if __name__ == "__main__":
    take_picture(float(sys.argv[1]), Path(sys.argv[2]))
