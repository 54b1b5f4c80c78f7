"""What lines are understood, what is said of the others, and that a changed input is noticed."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from launcher.batch import survey as survey_module
from launcher.batch.manifest import Manifest, settle
from launcher.batch.request import BadLine, Defaults, Request, read_line
from launcher.batch.source import BadInput, expand, read_lines
from launcher.batch.store import Store
from launcher.batch.survey import Changed, Input, Survey, look, read_again

DEFAULTS = Defaults("tiny", {"temperature": 0, "max_tokens": 5})
LIMIT = 1 << 20


def openai_line(custom_id: str = "a", **changes: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 7}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}


def read(line: Any, ordinal: int = 0, defaults: Defaults = DEFAULTS) -> Request | BadLine:
    return read_line(line if isinstance(line, bytes) else json.dumps(line).encode(), ordinal, defaults)


def request(line: Any, **changes: Any) -> Request:
    found = read(line, **changes)
    assert isinstance(found, Request), found
    return found


def test_a_complete_body_travels_byte_for_byte() -> None:
    text = b'{"custom_id":"x", "method":"POST","url":"/v1/completions","body": {"model" : "m","prompt":"\\u00e9"} }'
    found = request(text)
    assert (found.custom_id, found.url, found.body) == ("x", "/v1/completions", b'{"model" : "m","prompt":"\\u00e9"}')


def test_a_body_without_a_model_gets_the_runs() -> None:
    body = request(openai_line(body={"messages": [], "n": 2})).body
    assert json.loads(body) == {"model": "tiny", "messages": [], "n": 2}


@pytest.mark.parametrize(("field", "value", "url"), [("prompt", "Hi", "completions"), ("messages", [{}], "chat/")])
def test_a_plain_line_is_a_body_with_the_parameters_that_it_lacks(field: str, value: Any, url: str) -> None:
    found = request({field: value, "max_tokens": 9}, ordinal=4)
    assert json.loads(found.body) == {"model": "tiny", field: value, "max_tokens": 9, "temperature": 0}
    assert url in found.url and found.custom_id == "request-5" and found.max_tokens == 9
    assert request({field: value, "custom_id": "mine"}).custom_id == "mine"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"not json", "invalid_json_line"),
        (b"[1]", "invalid_json_line"),
        (b'{"prompt": "a"', "invalid_json_line"),
        ({}, "invalid_request"),
        ({"prompt": "a", "messages": []}, "invalid_request"),
        (openai_line(url="/v1/files"), "invalid_url"),
        (openai_line(url=None, method="POST"), "invalid_url"),
        (openai_line(method="GET"), "invalid_method"),
        ({**openai_line(), "custom_id": 7}, "invalid_custom_id"),
        ({**openai_line(), "custom_id": ""}, "invalid_custom_id"),
        ({"custom_id": "a", "method": "POST", "url": "/v1/completions"}, "missing_body"),
        (openai_line(body=[]), "invalid_body"),
        (openai_line(body={"prompt": "for completions"}), "invalid_request"),
        (openai_line(body={"messages": [], "stream": True}), "invalid_request"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: Any, code: str) -> None:
    found = read(line)
    assert isinstance(found, BadLine) and found.code == code and found.message


def test_keys_are_of_content_parameters_and_ordinal() -> None:
    keys = [
        request({"prompt": "a"}).key,
        request({"prompt": "a"}, ordinal=1).key,
        request({"prompt": "b"}).key,
        request({"prompt": "a"}, defaults=Defaults("tiny", {"temperature": 1})).key,
        request({"prompt": "a"}, defaults=Defaults("other", DEFAULTS.parameters)).key,
        request({"messages": "a"}).key,
    ]
    assert len(set(keys)) == len(keys) and keys[0] == request({"prompt": "a"}).key


# ---------------------------------------------------------------- files


def write(path: Path, *lines: Any) -> Path:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def survey(store_path: Path, *paths: Path, limit: int = LIMIT) -> tuple[Input, Survey]:
    given_ = Input(paths, DEFAULTS, limit)
    store = Store(store_path)
    try:
        return given_, look(given_, store)
    finally:
        store.close()


def items(given_: Input, found: Survey) -> list[Request | BadLine]:
    return [item for block in read_again(given_, found) for item in block]


def test_several_files_packed_and_not_are_one_input(tmp_path: Path) -> None:
    plain = write(tmp_path / "1.jsonl", {"prompt": "a"}, b"", {"prompt": "b"})
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "c"}\n{"prompt": "d"}'))
    frames = [zstandard.compress(text) for text in (b'{"prompt":', b' "e"}\n{"prompt": "f"}')]
    (tmp_path / "3.jsonl.zst").write_bytes(b"".join(frames))
    found = items(*survey(tmp_path / "s", *expand([str(tmp_path / "*.jsonl*")])))
    bodies = [json.loads(item.body)["prompt"] for item in found if isinstance(item, Request)]
    assert bodies == ["a", "b", "c", "d", "e", "f"] and [item.ordinal for item in found] == [*range(6)]
    assert expand([str(plain), str(tmp_path / "1*")]) == [plain]


def test_what_is_not_there_or_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no file .*nothing\.jsonl"):
        expand([str(tmp_path / "nothing.jsonl")])
    with pytest.raises(BadInput, match="no request"):
        survey(tmp_path / "s", write(tmp_path / "empty.jsonl", b"", b"  "))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"prompt": "c"}\n' * 9)[:-12])
    with pytest.raises(BadInput, match=r"cut\.jsonl\.gz: cannot be read to its end"):
        survey(tmp_path / "s", cut)
    for content in (b"no zstd", zstandard.compress(random.Random(0).randbytes(5000))[:-9]):
        broken = tmp_path / "broken.jsonl.zst"
        broken.write_bytes(content)
        with pytest.raises(BadInput, match=r"broken\.jsonl\.zst: cannot be read to its end"):
            survey(tmp_path / "s", broken)


@given(st.lists(st.binary(max_size=30).map(lambda text: text.replace(b"\n", b"")), max_size=20), st.integers(1, 30))
def test_lines_are_those_of_the_file_and_long_ones_are_marked(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], limit: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(b"\n".join(lines))
    found = [(line.number, line.text) for line in read_lines([path], limit)]
    expected = [(n, text if len(text) <= limit else None) for n, text in enumerate(lines, 1)]
    assert found == [(n, text) for n, text in expected if text is None or text.strip()]


@given(st.lists(st.integers(0, 8), min_size=1), st.integers(1, 5))
def test_of_those_with_one_custom_id_the_first_stays(numbers: list[int], part: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey_module, "PART", part)
        found = survey_module._repeated(array("q", numbers))
    assert found == {at for at, number in enumerate(numbers) if number in numbers[:at]}


def test_bad_lines_and_second_custom_ids_leave_the_good_ones(tmp_path: Path) -> None:
    long = openai_line("long", body={"messages": "x" * 2000})
    path = write(tmp_path / "in", openai_line("a"), b"{", openai_line("b"), openai_line("a"), long, {"prompt": "p"})
    given_, found = survey(tmp_path / "s", path, limit=1000)
    read_ = items(given_, found)
    assert (found.num_lines, found.num_bad) == (6, 3)
    told = {item.ordinal: (item.code, item.message) for item in read_ if isinstance(item, BadLine)}
    assert {ordinal: code for ordinal, (code, _) in told.items()} == {
        1: "invalid_json_line",
        3: "duplicate_custom_id",
        4: "line_too_long",
    }
    assert told[1][1].startswith("in, line 2: ") and told[4][1].startswith("in, line 5: ")


def with_results(path: Path, *paths: Path) -> None:
    store = Store(path)
    for item in items(*survey(path.with_name("other"), *paths)):
        store.append(item.ordinal, item.key, b"{}\n", ok=True)
    store.write(store.take())
    store.close()


def test_a_longer_input_goes_on_and_a_changed_one_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "in", {"prompt": "a"}, {"prompt": "b"})
    with_results(tmp_path / "s", path)
    assert survey(tmp_path / "s", write(path, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}))[1].num_lines == 3
    with pytest.raises(Changed, match=r"request 2 .*edited"):
        survey(tmp_path / "s", write(path, {"prompt": "a"}, {"prompt": "B"}))
    with pytest.raises(Changed, match="1 requests, but there are results up to number 2"):
        survey(tmp_path / "s", write(path, {"prompt": "a"}))


def test_a_change_between_the_two_readings_is_noticed_before_it_runs(tmp_path: Path) -> None:
    lines = [{"prompt": f"p{n}"} for n in range(600)]
    path = write(tmp_path / "in", *lines)
    given_, found = survey(tmp_path / "s", path)
    lines[300] = {"prompt": "edited"}
    again = read_again(given_, found)
    write(path, *lines)
    assert len(next(again)) == 256
    with pytest.raises(Changed, match="at or after request 257"):
        next(again)
    write(path, *lines[:256])
    with pytest.raises(Changed, match="became shorter"):
        list(read_again(given_, found))


def test_other_settings_are_said_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "batch.json"
    first = Manifest(model="tiny", parameters={"temperature": 0})
    settle(path, first, has_results=False)
    settle(path, first, has_results=True)
    second = Manifest(model="large", parameters={"temperature": 1})
    told = "batch.parameters.temperature was 0, is 1; model was 'tiny', is 'large'"
    with pytest.raises(Changed, match=told):
        settle(path, second, has_results=True)
    settle(path, second, has_results=False)  # nothing would be mixed
    assert msgspec.json.decode(path.read_bytes(), type=Manifest) == second


def test_a_large_input_is_streamed(tmp_path: Path) -> None:
    """A line of 300 MB and 200,000 small ones, in less memory than that one line."""
    program = """
import resource, sys
from pathlib import Path
from launcher.batch.request import Defaults
from launcher.batch.store import Store
from launcher.batch.survey import Input, look
path = Path(sys.argv[1])
with path.open("wb") as file:
    file.write(b"x" * 1_000_000)
    for _ in range(299):
        file.write(bytes(1_000_000).replace(b"\\0", b"x"))
    file.write(b"\\n")
    for n in range(200_000):
        file.write(b'{"prompt":"number %d"}\\n' % n)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = look(Input((path,), Defaults("tiny"), 32 << 20), Store(path.with_name("s")))
print(found.num_lines, found.num_bad, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    answer = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "in")], capture_output=True, text=True, check=True
    ).stdout
    num_lines, num_bad, grown_kib = map(int, answer.split())
    assert (num_lines, num_bad) == (200_001, 1) and grown_kib < 150 * 1024
