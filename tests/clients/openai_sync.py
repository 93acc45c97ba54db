"""The `openai` package as scripts and back ends use it: chats, streams, tools, structured output, errors, retries."""

import json
from concurrent.futures import ThreadPoolExecutor

import openai
from pydantic import BaseModel

QUESTION = [{"role": "user", "content": "What is 12 plus 30?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "set_temperature",
        "description": "Set a room's temperature",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"room": {"enum": ["kitchen", "bath"]}, "degrees": {"enum": [18, 20, 22]}},
            "required": ["room", "degrees"],
            "additionalProperties": False,
        },
    },
}


class Verdict(BaseModel):
    right: bool
    grade: int | None


def main() -> None:
    client = openai.OpenAI(api_key="none")
    model = models(client)
    chat(client, model)
    stream(client, model)
    choices_and_logprobs(client, model)
    tools(client, model)
    structured(client, model)
    completions(client, model)
    errors(client, model)
    retries(client, model)


def models(client: openai.OpenAI) -> str:
    listed = [card.id for card in client.models.list()]
    assert listed
    for name in listed:  # also those with slashes
        assert client.models.retrieve(name).id == name
    return listed[0]


def chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_completion_tokens=200)
    (choice,) = answer.choices
    assert "42" in choice.message.content, choice
    assert (choice.finish_reason, choice.message.role, choice.message.tool_calls) == ("stop", "assistant", None)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == model
    assert answer.id.startswith("chatcmpl")


def stream(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "messages": QUESTION, "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    with client.chat.completions.stream(**options) as helper:  # the package's own accumulating reader
        assert helper.get_final_completion().choices[0].message.content == text


def choices_and_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, n=3, seed=7, temperature=1.0, max_tokens=8, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert len(choice.logprobs.content) == answer.usage.completion_tokens / 3
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in choice.logprobs.content)
        assert b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode() == choice.message.content


def tools(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "messages": QUESTION, "tools": [TOOL], "tool_choice": "required", "temperature": 0}
    answer = client.chat.completions.create(**options, parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    check_arguments(call.function.name, call.function.arguments)
    chunks = client.chat.completions.create(**options, parallel_tool_calls=False, stream=True)
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert deltas[0].id
    assert deltas[0].function.name == "set_temperature"
    assert all(delta.id is None and delta.function.name is None for delta in deltas[1:])
    check_arguments("set_temperature", "".join(delta.function.arguments for delta in deltas))
    history = [
        *QUESTION,
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    after = client.chat.completions.create(
        model=model, messages=history, tools=[TOOL], tool_choice="none", max_tokens=8
    )
    assert after.choices[0].message.tool_calls is None


def check_arguments(name: str, arguments: str) -> None:
    assert name == "set_temperature"
    value = json.loads(arguments)
    assert value["room"] in ("kitchen", "bath")
    assert value["degrees"] in (18, 20, 22)


def structured(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(model=model, messages=QUESTION, response_format=Verdict, temperature=0)
    assert isinstance(answer.choices[0].message.parsed, Verdict)
    response = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"not": {}}}}
    try:
        client.chat.completions.create(model=model, messages=QUESTION, response_format=response)
    except openai.BadRequestError as error:
        assert "'not'" in error.message
    else:
        raise AssertionError("a schema that cannot be enforced was accepted")


def completions(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=["One", "Two"], max_tokens=4, temperature=0, echo=False)
    assert [choice.index for choice in answer.choices] == [0, 1]
    ids = client.completions.create(model=model, prompt=[0, 5, 6], max_tokens=2, logprobs=1)
    assert len(ids.choices[0].logprobs.token_logprobs) == 2


def errors(client: openai.OpenAI, model: str) -> None:
    for wrong, kind, code in (
        ({"model": "nobody/nothing"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 0}, openai.BadRequestError, None),
        (
            {"messages": [{"role": "user", "content": "word " * 200_000}]},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
    ):
        try:
            client.chat.completions.create(**{"model": model, "messages": QUESTION, **wrong})
        except kind as error:
            assert error.code == code, error
            assert error.message
            assert error.body["type"]
        else:
            raise AssertionError(f"{wrong} was accepted")


def retries(client: openai.OpenAI, model: str) -> None:
    """More at once than the server takes: the package waits and tries again, and in the end everybody is served."""
    patient = client.with_options(max_retries=20)

    def one(_: int) -> str | None:
        answer = patient.chat.completions.create(model=model, messages=QUESTION, temperature=0)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(48) as threads:
        assert all("42" in (text or "") for text in threads.map(one, range(48)))


if __name__ == "__main__":
    main()
