"""The fields of the installed vLLM's request models as JSON: by route and field, two values of its schema.

A process of its own, for vLLM's imports warn.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

Schema = dict[str, Any]


def models() -> dict[str, Any]:
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    return {
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/completions": CompletionRequest,
        "/v1/messages": AnthropicMessagesRequest,
        "/v1/responses": ResponsesRequest,
    }


def values_of(schema: Schema, definitions: dict[str, Schema], depth: int = 0) -> list[Any]:
    """Two different ones, or the only one."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return list(schema["enum"][:2])
    for several in ("anyOf", "oneOf", "allOf"):
        options = [option for option in schema.get(several, ()) if option.get("type") != "null"]
        if options:
            found = [value for option in options[:2] for value in values_of(option, definitions, depth)[:2]]
            return [found[0], *[value for value in found[1:] if value != found[0]][:1]]
    match schema.get("type"):
        case "boolean":
            return [False, True]
        case "integer":
            low = schema.get("minimum", 1)
            return [max(low, 1), max(low, 1) + 1]
        case "number":
            return [0.25, 0.5]
        case "array":
            return [[], values_of(schema.get("items", {}), definitions, depth + 1)[:1]]
        case "object":
            return objects(schema, definitions, depth)
    return ["one", "two"]


def objects(schema: Schema, definitions: dict[str, Schema], depth: int) -> list[Any]:
    """Their required fields, and one more in the second."""
    if depth > 3:
        return [{}, {"x": 1}]
    fields = schema.get("properties", {})
    required = {name: values_of(fields[name], definitions, depth + 1)[0] for name in schema.get("required", ())}
    further = {name: values_of(field, definitions, depth + 1)[-1] for name, field in list(fields.items())[:1]}
    return [required, {**required, **(further or {"key": "value"}), "also": 1}]


def every_field() -> dict[str, dict[str, list[Any]]]:
    told = {}
    for path, model in models().items():
        schema = model.model_json_schema()
        fields = schema["properties"]
        told[path] = {name: values_of(fields[name], schema.get("$defs", {})) for name in sorted(fields)}
    return told


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        fields = every_field()
    routes = []
    for path, of in fields.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in of.items())
        routes.append(f" {json.dumps(path)}: {{\n{lines}\n }}")
    print("{\n" + ",\n".join(routes) + "\n}")
