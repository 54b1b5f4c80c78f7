"""The page in a real browser, on a real proxy with workers: what it shows, what it asks for, what it never does."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.live import READER_KEY, Live
from tests.whiteboard import ENDING, LOADING, MODEL, PENDING, PLACES, READY, browser, fleet

pytestmark = pytest.mark.browser

TIMEOUT_MS = 20_000
# A browser reports every answer that is no 2xx; nothing else may be reported.
EXPECTED_NOISE = re.compile(r"Failed to load resource: .*(401|ERR_INTERNET_DISCONNECTED)")


class Visitor:
    """A page and all that it has asked for and complained of."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.requests: list[Any] = []
        self.complaints: list[str] = []
        page.set_default_timeout(TIMEOUT_MS)
        page.on("request", lambda request: self.requests.append(request))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def enter(self, key: str) -> None:
        self.page.fill("#key", key)
        self.page.press("#key", "Enter")

    def card(self, worker: str) -> Any:
        return self.page.locator(f"[data-worker='{worker}']")

    def sees(self, selector: str, text: str | re.Pattern[str]) -> None:
        self.page.locator(selector, has_text=text).first.wait_for()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def run(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with fleet(tmp_path_factory.mktemp("page") / "run") as started:
        yield started


@pytest.fixture
def visitor(chromium: Any, run: Live) -> Iterator[Visitor]:
    """Whatever a test does: nothing went elsewhere, nothing was stored, nothing went wrong unnoticed."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    visiting = Visitor(context.new_page(), run.url)
    visiting.page.goto(run.url)
    yield visiting
    assert {request.url.split("?")[0].removeprefix(run.url) for request in visiting.requests} <= {"/", "/overview"}
    assert [line for line in visiting.complaints if not EXPECTED_NOISE.match(line)] == []
    assert visiting.page.evaluate("localStorage.length + document.cookie.length") == 0
    context.close()


@pytest.fixture
def inside(visitor: Visitor) -> Visitor:
    visitor.enter(READER_KEY)
    visitor.card("decode-1").wait_for()
    return visitor


# ---------------------------------------------------------------- the key


def test_the_key_is_asked_for_once_and_a_wrong_one_is_said_to_be_wrong(visitor: Visitor) -> None:
    page = visitor.page
    assert page.locator("#key").is_visible() and not page.locator("#main").is_visible()
    assert len(visitor.requests) == 1, "the page itself, and no data"
    visitor.enter("sk-wrong")
    visitor.sees("#fault", "does not know that key")
    assert not page.locator("#main").is_visible()
    visitor.enter("süß")
    visitor.sees("#fault", "no key")
    visitor.enter(READER_KEY)
    visitor.card("decode-0").wait_for()
    page.reload()
    visitor.card("decode-0").wait_for()
    asked = [request for request in visitor.requests if "/overview" in request.url]
    assert asked[-1].all_headers()["authorization"] == f"Bearer {READER_KEY}"
    assert not any(READER_KEY in request.url for request in visitor.requests)
    page.click("#forget")
    assert page.locator("#key").is_visible() and page.evaluate("sessionStorage.length") == 0


# ---------------------------------------------------------------- the fleet


def test_workers_are_drawn_on_their_nodes_with_role_gpus_and_time(inside: Visitor) -> None:
    nodes = inside.page.locator(".node")
    assert nodes.locator("h3").all_inner_texts() == ["gpu-01", "gpu-02", "gpu-03"]
    assert nodes.locator("header > span").first.inner_text() == "8 GPUs, 0 free"
    for worker, (node, gpus, job, _) in PLACES.items():
        card = inside.page.locator(".node", has=inside.page.locator(f"h3:text-is('{node}')")).locator(
            f"[data-worker='{worker}']"
        )
        text = card.inner_text()
        role = worker.split("-")[0]
        assert card.get_attribute("class") == f"worker {role}"
        assert all(word in text for word in (role, "TP4", "generation 0", f"job {job}", " left")), text
        assert card.locator(".gpus li").all_inner_texts() == gpus.split(",")
        assert card.locator(".phase").inner_text() == ("loading" if worker == LOADING else "ready")
    assert "serving, 4 of 6 workers ready" in inside.page.locator("#state").inner_text()
    assert inside.page.locator("#flows path.track").count() >= len(READY), "what is proven is drawn, idle as it is"


def test_what_waits_for_slurm_is_shown_with_its_reason(inside: Visitor) -> None:
    successor, waiting = inside.page.locator("#missing li").all_inner_texts()
    for word in (PENDING, "pending", "Resources: the GPUs it asks for are in use", "4 GPUs", "job 4219", "to start 20"):
        assert word in waiting
    limit = "QOSMaxGRESPerUser: a limit of your account or QOS"
    for word in (ENDING, "generation 1", "pending", limit, "to follow generation 0, job 4220"):
        assert word in successor


def handed_over(told: dict[str, Any], **predecessor: Any) -> dict[str, Any]:
    """An answer of /overview in which a successor serves, and its predecessor is there yet."""
    before = next(worker for worker in told["workers"] if worker["worker"] == ENDING)
    after = {**before, "generation": 1, "node": "gpu-03", "gpus": [4, 5, 6, 7], "job": "4220"}
    before |= predecessor
    told["workers"].append(after)
    told["jobs"] = [{**job, "nodes": ["gpu-03"]} if job["job"] == "4220" else job for job in told["jobs"]]
    told["pairs"] += [{**pair, "proven": False} for pair in told["pairs"] if pair["decode"] == ENDING]
    return told


def test_what_flows_goes_to_the_successor_and_leaves_nothing_behind(inside: Visitor) -> None:
    page = inside.page
    before = page.locator("#arrows > g").count()
    predecessor: dict[str, Any] = {}

    def answer(route: Any) -> None:
        real = route.fetch()
        route.fulfill(response=real, json=handed_over(real.json(), **predecessor))

    page.route("**/overview*", answer)
    lives = inside.card(ENDING)
    lives.nth(1).wait_for()
    assert "4 of 6 workers ready" in page.locator("#state").inner_text(), "both are, and they are one worker"
    predecessor |= {"phase": "draining", "detail": "its walltime ends", "leaving": True}
    lives.nth(0).locator(".phase", has_text="draining").wait_for()
    assert [life.get_attribute("data-phase") for life in lives.all()] == ["draining", "ready"]
    assert page.evaluate(f"boxOf('{ENDING}').dataset.key") == f"{ENDING}/1"
    for _ in range(3):
        page.evaluate("draw()")
    assert page.locator("#arrows > g").count() == before
    assert page.locator("#missing li").all_inner_texts()[0].startswith(PENDING), "the successor is here"
    page.unroute("**/overview*")
    lives.nth(1).wait_for(state="detached")
    assert page.locator("#arrows > g").count() == before


@contextmanager
def streaming(run: Live) -> Iterator[None]:
    """A request that streams as long as somebody looks."""
    looked, begun = threading.Event(), threading.Event()

    def ask() -> None:
        body = {"model": MODEL, "prompt": "word " * 300, "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with run.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
            for _ in answer.iter_raw():
                begun.set()
                if looked.is_set():
                    return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert begun.wait(20)
        yield
    finally:
        looked.set()
        thread.join()


def test_a_streaming_request_shows_as_load_kv_and_flow(inside: Visitor, run: Live) -> None:
    with streaming(run):
        inside.sees(".worker.decode .load", re.compile(r"1\s*running"))
        inside.sees(".worker.decode .kv b", re.compile(r"[1-9]\d* %"))
        inside.page.locator("#flows path.flow").first.wait_for(state="attached")
        inside.sees("#flows text", re.compile(r"\d/s"))
        inside.sees("#proxy-figures", re.compile(r"open\s*1\D"))
    inside.page.locator(".worker.decode .load", has_text=re.compile(r"1\s*running")).wait_for(state="detached")
    with run.client() as client:
        body = {"model": MODEL, "prompt": "word " * 300, "max_tokens": 20, "stream": True}
        assert "[DONE]" in client.post("/v1/completions", json=body).text


# ---------------------------------------------------------------- for everyone


def test_the_same_as_tables_and_by_keyboard(inside: Visitor) -> None:
    page = inside.page
    page.focus("#skip")
    assert page.locator("#skip").bounding_box()["x"] > 0, "seen once it has the focus"
    page.keyboard.press("Enter")
    rows = page.locator("#tables table").first.locator("tbody tr")
    assert rows.locator("th[scope=row]").all_inner_texts() == sorted(PLACES)
    assert all(word in rows.first.inner_text() for word in ("decode-0", "TP4", "ready", "gpu-02", "0 1 2 3", "4213"))
    captions = page.locator("#tables caption").all_inner_texts()
    assert captions == ["Workers", "Not here yet", "Proxy", "Requests and KV", "The last hour", "What has happened"]
    assert page.locator("#tables table").nth(1).locator("tbody tr").count() == 2
    figures = page.locator("#tables table").nth(2).locator("tbody th").all_inner_texts()
    assert figures == page.locator("#proxy-figures dt").all_text_contents()
    assert not page.locator("#drawing").is_visible()
    page.click("#show-drawing")
    page.locator("figure").first.focus()
    page.keyboard.press("ArrowLeft")
    label = page.locator("figure svg").first.get_attribute("aria-label")
    assert re.fullmatch(r"Time to first token: p50 .*, p99 .*, \d\d:\d\d", label), "a time, no longer now"


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_picture_is_one(inside: Visitor, scheme: str, dark: bool) -> None:
    from PIL import Image, ImageStat

    inside.page.emulate_media(color_scheme=scheme)
    picture = Image.open(io.BytesIO(inside.page.screenshot())).convert("RGB")
    assert picture.size == (1440, 900)
    most_common = max(count for count, _ in picture.getcolors(1 << 24))
    assert most_common < 0.8 * 1440 * 900, "blank"
    brightness = ImageStat.Stat(picture.convert("L")).mean[0]
    assert brightness < 60 if dark else brightness > 200


def test_a_narrow_window_shows_all_of_it(inside: Visitor) -> None:
    inside.page.set_viewport_size({"width": 400, "height": 800})
    assert inside.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert all(inside.card(worker).is_visible() for worker in PLACES)
    assert not inside.page.locator("#flows").is_visible(), "no room for arrows"
    for worker in READY:
        assert re.search(r"\d/s\s*begun", inside.card(worker).inner_text()), "what the arrows would say"


# ---------------------------------------------------------------- when things break


def test_old_data_are_told_to_be_old(inside: Visitor) -> None:
    inside.page.context.set_offline(True)
    inside.sees("#heard", re.compile(r"last seen \d+ s ago: the proxy does not answer"))
    inside.page.locator("body.stale").wait_for()
    assert "what is shown is old" in inside.page.locator("[role=status]").inner_text()
    assert inside.card("decode-0").is_visible(), "the last that was known"
    inside.page.context.set_offline(False)
    inside.sees("#heard", re.compile("^live$"))
    assert inside.page.locator("body.stale").count() == 0


def test_the_last_hour_is_drawn(inside: Visitor) -> None:
    """By now the interval in which a test before has streamed is over."""
    for chart in range(4):
        inside.page.locator("figure").nth(chart).locator("path.a[d*=M]").wait_for(state="attached")


def test_a_worker_that_dies_is_lost(inside: Visitor, run: Live) -> None:
    """From here on, workers are taken away."""
    run.kill("decode-1")
    inside.sees("[data-worker='decode-1'] .phase", "lost")
    inside.sees("[data-worker='decode-1'] .detail", "lost: ")
    inside.sees("#state", "3 of 6 workers ready")
    inside.sees("#journal li", re.compile("decode-1\\s*lost: "))
    inside.page.click("#show-tables")
    inside.sees("#tables table tr", re.compile("decode-1.*lost.*lost: "))


def test_a_worker_that_ends_as_asked_is_gone(inside: Visitor, run: Live) -> None:
    run.processes["decode-0"].terminate()
    inside.sees("[data-worker='decode-0'] .phase", "gone")
    inside.sees("[data-worker='decode-0'] .detail", "gone: ")
    inside.sees("#journal li", re.compile("decode-0\\s*gone: "))
    assert run.processes["decode-0"].wait(20) == 0
    journal = [entry["text"] for entry in overview(run)["journal"] if entry["worker"] == "decode-0"]
    assert [text.split(":")[0] for text in journal] == ["starting", "loading", "ready", "draining", "gone"]


def overview(run: Live) -> Any:
    with run.client() as client:
        return client.get("/overview").json()
