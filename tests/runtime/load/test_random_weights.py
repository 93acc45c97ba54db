"""A model without any sense, asked for form: whatever it writes under a schema or as a call is valid, and it ends.

Two hundred schemas and two hundred sets of tools, each from its own seed, many at a time and with drafts.
"""

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from chat_answers import ChatAnswer, ask_streamed, ask_whole
from deepseek_runtime.text.dialect import FENCED
from random_schemas import Schema, random_object, random_schema
from random_tutor import MARKS, write_random_tutor
from serving import served

COUNT = 200
CLIENTS = 32
END = "<｜end▁of▁sentence｜>"
FLAGS = ("--speculative-tokens", "1", "--max-model-len", "8192", "--kv-tokens", "131072")
FEW_CALLS = {str(MARKS[FENCED.calls_end]): 3}
"""A bias to the mark that ends a block of calls. Whether one more call comes would else be a coin's to say."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(write_random_tutor(tmp_path_factory.mktemp("random-tutor")), *FLAGS) as client:
        yield client


def complaints(judge: Callable[[int], str | None]) -> list[str]:
    """What is wrong with the answers to all seeds, asked by several clients at once."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        found = clients.map(judge, range(COUNT))
        return [f"seed {seed}: {complaint}" for seed, complaint in enumerate(found) if complaint]


def flaw(schema: Schema, text: str) -> str | None:
    """Why a text is not JSON of a schema, None if it is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"{text!r} is no JSON: {error}"
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return next((f"{error.message} in {text!r} under {schema}" for error in validator.iter_errors(value)), None)


def question(seed: int, **form: Any) -> dict[str, Any]:
    return {
        "model": "test",
        "messages": [{"role": "user", "content": f"{seed}?"}],
        "temperature": 1,
        "seed": seed,
    } | form


def test_every_answer_under_a_schema_ends_and_is_valid(client: httpx.Client) -> None:
    def judge(seed: int) -> str | None:
        dice = random.Random(seed)
        schema = random_schema(dice)
        form = {"type": "json_schema", "json_schema": {"name": "any", "schema": schema, "strict": True}}
        answer = dice.choice([ask_whole, ask_streamed])(client, question(seed, response_format=form))
        return flaw(schema, answer.content) if answer.finish_reason == "stop" else f"no end: {answer}"

    assert complaints(judge) == []


def random_tools(dice: random.Random) -> list[dict[str, Any]]:
    """One to three tools with parameters of their own."""
    names = [f"{dice.choice(['get', 'set', 'Find-all'])}_{number}" for number in range(dice.randint(1, 3))]
    parameters = [random_object(dice, dice.choice([1, 1, 2])) for _ in names]
    functions = [{"name": n, "parameters": p, "strict": True} for n, p in zip(names, parameters, strict=True)]
    return [{"type": "function", "function": function} for function in functions]


def wrong_calls(form: dict[str, Any], answer: ChatAnswer) -> str | None:
    """What is wrong with the calls of an answer to a request that wanted some."""
    parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in form["tools"]}
    named = isinstance(form["tool_choice"], dict)
    allowed = {form["tool_choice"]["function"]["name"]} if named else set(parameters)
    single = named or not form["parallel_tool_calls"]
    if answer.finish_reason != ("stop" if named else "tool_calls"):
        return f"ended by {answer.finish_reason}: {answer}"
    if not answer.calls or (single and len(answer.calls) > 1) or answer.content:
        return f"not what {form['tool_choice']} asks for: {answer}"
    if FENCED.write_calls(answer.calls) + END != answer.raw.decode():
        return f"the model wrote {answer.raw.decode()!r}, not {answer.calls}"
    if strange := {name for name, _ in answer.calls} - allowed:
        return f"called {strange}, allowed are {allowed}"
    return next(filter(None, (flaw(parameters[name], arguments) for name, arguments in answer.calls)), None)


def test_every_required_call_ends_and_is_valid_and_is_what_the_model_wrote(client: httpx.Client) -> None:
    def judge(seed: int) -> str | None:
        dice = random.Random(seed)
        tools = random_tools(dice)
        named = {"type": "function", "function": {"name": dice.choice(tools)["function"]["name"]}}
        form = {"tools": tools, "tool_choice": dice.choice(["required", named]), "parallel_tool_calls": seed % 2 == 0}
        ask = dice.choice([ask_whole, ask_streamed])
        answer = ask(client, question(seed, logit_bias=FEW_CALLS, logprobs=True, **form))
        return wrong_calls(form, answer)

    assert complaints(judge) == []
