"""The simulated engine as a host sees it: its app, its legs, and KV that moves between two engines."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import pytest

from tests.sim_engine import (
    FAST,
    PROMPT,
    Client,
    complete,
    engine,
    metric,
    new_call,
    post,
    prefilled,
    run,
    ticket_of,
    until_free,
)
from workers.engines.sim.api import Chunks, Generation, full_answer, usage
from workers.engines.sim.engine import SimEngine
from workers.engines.sim.handoff import Answer, Ask, HandOver, listen
from workers.protocol import Leg

# ---------------------------------------------------------------- the OpenAI shapes


def test_a_completion() -> None:
    async def test() -> None:
        async with engine() as sim:
            answer = await post(sim)
            again = await post(sim)
        assert answer.status == 200
        [choice] = answer.json["choices"]
        assert choice["finish_reason"] == "length"
        assert len(choice["text"]) == 12 * 4
        assert answer.json["usage"]["completion_tokens"] == 12
        assert answer.json["usage"]["total_tokens"] == answer.json["usage"]["prompt_tokens"] + 12
        assert again.json["choices"] == [choice]

    run(test)


def test_a_chat_stream_is_shaped_as_vllms() -> None:
    async def test() -> None:
        body = {
            "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
            "max_completion_tokens": 3,
            "temperature": 0,
        }
        async with engine() as sim:
            stream = await post(
                sim, "/v1/chat/completions", **body, stream=True, stream_options={"include_usage": True}
            )
            whole = await post(sim, "/v1/chat/completions", **body)
        first, *middle, last, counts = stream.events
        assert first["object"] == "chat.completion.chunk"
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert len(middle) == 2
        assert [event["choices"][0]["finish_reason"] for event in (*middle, last)] == [None, None, "length"]
        assert counts["choices"] == []
        assert counts["usage"] == {key: whole.json["usage"][key] for key in counts["usage"]}
        text = "".join(event["choices"][0]["delta"]["content"] for event in (*middle, last))
        assert whole.json["choices"][0]["message"]["content"] == text
        assert stream.sent[0]["headers"] == [(b"content-type", b"text/event-stream; charset=utf-8")]

    run(test)


def test_answers_are_byte_for_byte_as_vllm_writes_them() -> None:
    """The expected texts were written by vLLM 0.32.0's own response classes."""
    chat, text = (
        Generation(
            id="i",
            chat=chat,
            model="m",
            created=1,
            prompts=["p"],
            max_tokens=1,
            n=1,
            seed=None,
            stop=(),
            stream=True,
            include_usage=True,
        )
        for chat in (True, False)
    )
    counts = usage(3, 2)
    chunk = '{"id":"i","object":"chat.completion.chunk","created":1,"model":"m","choices":['
    assert [Chunks(chat).role(0), Chunks(chat).text(0, "x", "length"), Chunks(text).text(0, "x")] == [
        b"data: %b\n\n" % line.encode()
        for line in (
            chunk + '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
            '"prompt_token_ids":null,"prompt_text":null}',
            chunk + '{"index":0,"delta":{"content":"x"},"logprobs":null,"finish_reason":"length","stop_reason":null,'
            '"token_ids":null}]}',
            '{"id":"i","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"x",'
            '"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}',
        )
    ]
    usage_text = '"prompt_tokens":3,"total_tokens":5,"completion_tokens":2'
    assert Chunks(chat).usage(counts).decode() == f'data: {chunk}],"usage":{{{usage_text}}}}}\n\n'
    usage_text += ',"prompt_tokens_details":null,"completion_tokens_details":null'
    assert full_answer(text, [("x", "length", None)], counts).decode() == (
        '{"id":"i","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"x",'
        '"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"prompt_logprobs":null,'
        '"prompt_token_ids":null,"routed_experts":null}],"service_tier":null,"system_fingerprint":null,'
        f'"usage":{{{usage_text}}},"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}'
    )
    assert full_answer(chat, [("x", "length", None)], counts).decode() == (
        '{"id":"i","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
        '{"role":"assistant","content":"x","refusal":null,"annotations":null,"audio":null,"function_call":null,'
        '"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,'
        '"routed_experts":null}],"service_tier":null,"system_fingerprint":null,'
        f'"usage":{{{usage_text}}},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,'
        '"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
    )


def test_several_prompts_and_sequences() -> None:
    async def test() -> None:
        async with engine() as sim:
            both = (await post(sim, prompt=["first", "second"], n=2, temperature=1, stream=True)).events
            seeded = await post(sim, prompt="second", n=2, temperature=1)
            token_ids = (await post(sim, "/tokenize", prompt="second")).json["tokens"]
            by_ids = await post(sim, prompt=[token_ids])
        texts = [""] * 4
        for event in both:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
        assert len(set(texts)) == 4
        assert texts[2:] == [choice["text"] for choice in seeded.json["choices"]]
        assert by_ids.json["choices"][0]["text"] == texts[2]

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(stream: bool) -> None:
    async def test() -> None:
        async with engine() as sim:
            text = (await post(sim)).json["choices"][0]["text"]
            stop = text[14:19]  # across tokens
            answer = await post(sim, stop=[stop, "nowhere"], stream=stream)
            await until_free(sim)
        choices = [event["choices"][0] for event in answer.events] if stream else answer.json["choices"]
        assert "".join(choice["text"] for choice in choices) == text[: text.index(stop)]
        assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", stop)

    run(test)


def test_text_goes_up_to_the_models_limit() -> None:
    async def test() -> None:
        async with engine(max_model_len=30) as sim:
            answer = await post(sim, max_tokens=1000)
        assert answer.json["usage"]["total_tokens"] == 30

    run(test)


@pytest.mark.parametrize(
    ("path", "body", "status", "message", "param"),
    [
        ("/v1/completions", b"{", 400, "Input data was truncated", None),
        ("/v1/completions", b'{"prompt":"\xff"}', 400, "utf-8", None),
        ("/v1/completions", {"prompt": 5}, 400, "$.prompt", None),
        ("/v1/completions", {"prompt": ["a", 1]}, 400, "bare token ids", "prompt"),
        ("/v1/completions", complete(model="huge"), 404, "The model `huge` does not exist.", "model"),
        (
            "/v1/completions",
            complete(prompt="word " * 600, max_tokens=1),
            400,
            "maximum context length",
            "input_tokens",
        ),
        ("/v1/completions", complete(max_tokens=0), 400, "at least 1", "max_tokens"),
        ("/v1/completions", complete(n=0), 400, "between 1 and", "n"),
        ("/v1/completions", complete(logprobs=3), 400, "logprobs", "logprobs"),
        (
            "/v1/completions",
            complete(response_format={"type": "json_object"}),
            400,
            "response_format",
            "response_format",
        ),
        ("/v1/chat/completions", {"messages": []}, 400, "must not be empty", "messages"),
        ("/v1/chat/completions", {"messages": [{"content": "x"}]}, 400, "`role`", None),
        ("/detokenize", {"tokens": [7]}, 400, "Token id 7 is out of vocabulary", "tokens"),
        ("/v1/nothing", {}, 404, "Not Found", None),
        ("/v1/models", {}, 405, "Method Not Allowed", None),
    ],
)
def test_errors_have_vllms_shape(path: str, body: Any, status: int, message: str, param: str | None) -> None:
    async def test() -> None:
        async with engine(max_model_len=600) as sim:
            answer = await Client(sim, path, body).run()
        assert answer.status == status
        error = answer.json["error"]
        assert message in error.pop("message")
        assert error.pop("type")
        assert error == {"param": param, "code": status}

    run(test)


def test_the_other_routes() -> None:
    async def test() -> None:
        async with engine() as sim:
            models = (await Client(sim, "/v1/models").run()).json
            assert [card["id"] for card in models["data"]] == ["tiny", "also-tiny"]
            assert models["data"][0]["max_model_len"] == 1000
            assert (await Client(sim, "/health").run()).status == 200
            tokens = (await post(sim, "/tokenize", prompt="hello there")).json
            assert tokens["count"] == len(tokens["tokens"])
            assert (await post(sim, "/detokenize", tokens=tokens["tokens"])).json == {"prompt": "hello there"}

    run(test)


def test_a_cached_prefix_is_counted() -> None:
    async def test() -> None:
        async with engine() as sim:
            await post(sim)
            call = new_call(Leg.WHOLE)
            await post(sim, call=call)
            assert call.num_cached_tokens == (call.num_prompt_tokens - 1) // 4 * 4
            assert await metric(sim, "vllm:prefix_cache_hits_total") == call.num_cached_tokens

    run(test)


# ---------------------------------------------------------------- legs and tickets


def test_through_prefill_and_decode_the_text_is_the_same() -> None:
    async def test() -> None:
        async with engine() as plain, engine() as holder, engine() as decoder:
            expected = (await post(plain)).json
            prefill = await prefilled(holder)
            assert prefill.num_output_tokens == 1
            assert await metric(holder, "vllm:kv_cache_usage_perc") > 0
            decode = new_call(Leg.DECODE, ticket_of(prefill))
            answer = (await post(decoder, call=decode)).json
            assert decode.ticket_used
            assert decode.failure is None
            assert decode.num_output_tokens == 12
            assert answer["choices"] == expected["choices"]
            assert answer["usage"] == expected["usage"]
            assert decoder.kv_tokens_received() == decode.num_prompt_tokens - 1
            await until_free(holder)
            await until_free(decoder)

    run(test)


def test_an_engine_can_read_from_itself_and_decode_without_a_ticket() -> None:
    async def test() -> None:
        async with engine() as sim:
            expected = (await post(sim)).json["choices"]
            prefill = await prefilled(sim)
            for ticket in (ticket_of(prefill), None):
                answer = await post(sim, call=new_call(Leg.DECODE, ticket))
                assert answer.json["choices"] == expected
            await until_free(sim)

    run(test)


def test_a_ticket_read_after_its_lease_gives_wrong_text_and_no_error() -> None:
    async def test() -> None:
        async with engine(lease_s=0, max_model_len=160, num_blocks=40) as holder, engine() as decoder:
            expected = (await post(decoder)).json["choices"]
            prefill = await prefilled(holder)
            await until_free(holder)
            await post(holder, prompt="other " * 70)
            async with engine() as fresh:
                call = new_call(Leg.DECODE, ticket_of(prefill))
                answer = await post(fresh, call=call)
            assert call.failure is None
            assert answer.status == 200
            assert answer.json["choices"] != expected

    run(test)


def test_while_a_decode_leg_waits_heartbeats_keep_its_ticket() -> None:
    asks: list[Ask] = []

    async def test() -> None:
        async with engine() as holder, engine(lease_s=0.06, max_num_seqs=1) as decoder:
            assert isinstance(holder, SimEngine)

            def relay(ask: Ask) -> Answer:
                asks.append(ask)
                return holder.hand_out(ask)

            expected = (await post(holder)).json["choices"]
            ticket = ticket_of(await prefilled(holder))
            async with listen("127.0.0.1", relay) as port, asyncio.TaskGroup() as tasks:
                source = msgspec.structs.replace(msgspec.json.decode(ticket.params, type=HandOver), port=port)
                call = new_call(Leg.DECODE, msgspec.structs.replace(ticket, params=msgspec.json.encode(source)))
                busy = Client(decoder, "/v1/completions", complete(stream=True, max_tokens=900))
                tasks.create_task(busy.run())
                await busy.seen.wait()
                decode = tasks.create_task(post(decoder, call=call))
                while sum(ask.keep for ask in asks) < 3:  # noqa: ASYNC110 (they come by themselves)
                    await asyncio.sleep(0.005)
                busy.leave()
                assert (await decode).json["choices"] == expected
            await until_free(holder)

    run(test)
    assert sum(not ask.keep for ask in asks) == 1, "read once"


def test_clients_cannot_send_tickets() -> None:
    async def test() -> None:
        async with engine() as holder, engine() as sim:
            expected = (await post(sim, prompt="another")).json["choices"]
            params = msgspec.json.decode(ticket_of(await prefilled(holder)).params)
            answer = await post(sim, prompt="another", kv_transfer_params=params)
            assert answer.json["choices"] == expected
            assert sim.kv_tokens_received() == 0
            assert await metric(holder, "vllm:kv_cache_usage_perc") > 0

    run(test)


def test_released_tickets_free_their_holder() -> None:
    async def test() -> None:
        async with engine() as holder, engine() as other:
            for through in (holder, other):
                prefill = await prefilled(holder)
                assert prefill.ticket_params is not None
                await through.release(prefill.ticket_params)
                await until_free(holder)
            await holder.cancel(await prefilled(holder))
            assert await metric(holder, "vllm:kv_cache_usage_perc") == 0

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_holder_fails_the_decode_and_may_be_tried_again(stream: bool) -> None:
    async def test() -> None:
        async with engine() as holder:
            prefill = await prefilled(holder)
        async with engine() as decoder:
            call = new_call(Leg.DECODE, ticket_of(prefill))
            answer = await post(decoder, call=call, stream=stream)
            assert call.failure is not None
            assert call.failure.retryable
            assert not call.good_output
            assert "did not answer in 0.3 s" in call.failure.reason
            error = answer.events[-1]["error"] if stream else answer.json["error"]
            assert error["code"] == 500
            await until_free(decoder)
            await decoder.release(call.ticket.params if call.ticket else b"")

    run(test)


@pytest.mark.parametrize(
    ("change", "reason"), [({"engine_id": "worker-0/0/old"}, "worker-0/0/old is gone"), ({"port": "x"}, "not a ticket")]
)
def test_a_ticket_that_is_not_the_holders_is_refused(change: dict[str, Any], reason: str) -> None:
    async def test() -> None:
        async with engine() as holder, engine() as decoder:
            ticket = ticket_of(await prefilled(holder))
            params = msgspec.json.encode(msgspec.json.decode(ticket.params) | change)
            call = new_call(Leg.DECODE, msgspec.structs.replace(ticket, params=params))
            assert (await post(decoder, call=call)).status == 500
            assert call.failure is not None
            assert call.failure.retryable
            assert reason in call.failure.reason
            await until_free(decoder)

    run(test)


@pytest.mark.parametrize("body", [{"n": 2}, {"prompt": ["a", "b"]}])
def test_a_leg_of_more_than_one_sequence_is_refused(body: dict[str, Any]) -> None:
    async def test() -> None:
        async with engine() as holder, engine() as decoder:
            call = new_call(Leg.DECODE, ticket_of(await prefilled(holder)))
            answer = await post(decoder, call=call, **body)
            assert answer.status == 500
            assert call.failure is not None
            assert "must run whole" in call.failure.reason

    run(test)


# ---------------------------------------------------------------- clients that leave

SLOW = {"timing": {"prefill_ms": [0, 0, 0], "decode_ms": [0, 0, 20]}}


@pytest.mark.parametrize("how", ["disconnect", "cancel the task", "cancel the call"])
def test_a_client_that_leaves_frees_its_work_at_once(how: str) -> None:
    async def test() -> None:
        async with engine(**SLOW) as sim:
            client = Client(sim, "/v1/completions", complete(stream=True, max_tokens=900))
            call = new_call(Leg.WHOLE)
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(client.run(call))
                while len(client.sent) < 3:
                    client.seen.clear()
                    await client.seen.wait()
                if how == "disconnect":
                    client.leave()
                    await task
                elif how == "cancel the call":
                    await sim.cancel(call)
                    assert await metric(sim, "vllm:num_requests_running") == 0
                else:
                    task.cancel()
            await until_free(sim)
            assert call.num_output_tokens < 100

    run(test)


def test_a_client_that_leaves_during_the_transfer_frees_both_sides() -> None:
    async def test() -> None:
        slow_link = {"timing": {**FAST["timing"], "handoff_bytes_per_s": 1.0}}  # type: ignore[dict-item]
        async with engine() as holder, engine(**slow_link) as decoder:
            for cancel in (False, True):
                call = new_call(Leg.DECODE, ticket_of(await prefilled(holder)))
                client = Client(decoder, "/v1/completions", complete())
                async with asyncio.TaskGroup() as tasks:
                    task = tasks.create_task(client.run(call))
                    while not await metric(decoder, "vllm:num_requests_waiting"):  # noqa: ASYNC110
                        await asyncio.sleep(0)
                    if cancel:
                        await decoder.cancel(call)
                        assert await metric(holder, "vllm:kv_cache_usage_perc") == 0
                        task.cancel()
                    else:
                        client.leave()
                await until_free(decoder)
                await until_free(holder)

    run(test)


def test_a_prefill_cancelled_at_any_moment_leaves_no_ticket_that_nobody_knows() -> None:
    async def test() -> None:
        no_time = {"timing": {"prefill_ms": [0, 0, 0], "decode_ms": [0, 0, 0]}}
        async with engine(**no_time) as sim:
            for num_turns, how in itertools.product(range(25), ("task", "call")):
                call = new_call(Leg.PREFILL)
                async with asyncio.TaskGroup() as tasks:
                    task = tasks.create_task(Client(sim, "/v1/completions", complete()).run(call))
                    for _ in range(num_turns):
                        await asyncio.sleep(0)
                    if how == "call":
                        await sim.cancel(call)
                        assert await metric(sim, "vllm:kv_cache_usage_perc") == 0
                    task.cancel()
                if how == "task" and call.ticket_params is not None:
                    await sim.release(call.ticket_params)
                assert await metric(sim, "vllm:kv_cache_usage_perc") == 0

    run(test)


# ---------------------------------------------------------------- instant mode, arguments


def test_instant_streams_have_the_same_shape() -> None:
    async def test() -> None:
        body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3, "stream": True}
        options = {"stream_options": {"include_usage": True}}
        async with engine() as plain, engine(mode="instant", step_ms=1) as sim:
            call = new_call(Leg.WHOLE)
            instant = await post(sim, "/v1/chat/completions", call=call, **body, **options)
            real = await post(plain, "/v1/chat/completions", **body, **options)
            whole = await post(sim, max_tokens=3)
            refused = await post(sim, n=2)
        assert [list(event) for event in instant.events] == [list(event) for event in real.events]
        assert instant.events[0]["choices"] == real.events[0]["choices"]
        assert call.num_output_tokens == 3
        assert whole.json["choices"][0]["text"] == " token" * 3
        assert refused.status == 400

    run(test)


def test_instant_streams_step_in_groups_and_each_gets_all_its_tokens() -> None:
    async def test() -> None:
        async with engine(mode="instant", step_ms=4, step_groups=3, token_chars=10) as sim:
            clients = [Client(sim, "/v1/completions", complete(stream=True, max_tokens=n)) for n in range(1, 8)]
            async with asyncio.TaskGroup() as tasks:
                for client in clients:
                    tasks.create_task(client.run(new_call(Leg.WHOLE)))
            for num_tokens, client in enumerate(clients, 1):
                assert [event["choices"][0]["text"] for event in client.events] == [" token tok"] * num_tokens
            await until_free(sim)

    run(test)


def test_instant_legs_and_clients_that_leave() -> None:
    async def test() -> None:
        async with engine(mode="instant", step_ms=1) as sim:
            prefill = await prefilled(sim)
            decode = new_call(Leg.DECODE, ticket_of(prefill))
            assert (await post(sim, call=decode)).status == 200
            assert sim.kv_tokens_received() == decode.num_prompt_tokens - 1
            for how in ("leave", "cancel"):
                client = Client(sim, "/v1/completions", complete(stream=True, max_tokens=900))
                call = new_call(Leg.WHOLE)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(client.run(call))
                    await client.seen.wait()
                    if how == "leave":
                        client.leave()
                    else:
                        await sim.cancel(call)
                await until_free(sim)

    run(test)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"num_block": 3}, "num_block.*known: mode, step_ms, .*num_blocks"),
        ({"mode": "fast"}, r"\$\.mode"),
        ({"num_blocks": 2}, "max_model_len is 1000, but num_blocks=2 hold 8 tokens"),
    ],
)
def test_wrong_arguments_are_refused_by_name(args: dict[str, Any], message: str) -> None:
    async def test() -> None:
        with pytest.raises(ValueError, match=message):
            async with engine(**args):
                pass

    run(test)


def test_a_start_can_be_told_to_fail() -> None:
    async def test() -> None:
        with pytest.raises(RuntimeError, match="no such device"):
            async with engine(fail_at_start="no such device"):
                pass

    run(test)
