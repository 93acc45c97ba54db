"""Answers as the official client sees them: whole, streamed, stopped, counted."""

from typing import Any

import httpx
import openai
import pytest

from fake_model import BOS


@pytest.fixture
def server(shared_server: Any) -> Any:
    """These tests leave no trace: one server does for all."""
    return shared_server


TEXT = "héllo 你好 🙂 done"


def ask(content: str = TEXT, **extra: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": content}], "temperature": 0, **extra}


def stream(server: Any, **body: Any) -> list[Any]:
    return list(server.openai.chat.completions.create(**ask(**body), stream=True))


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_chat_is_answered(server: Any) -> None:
    answer = server.openai.chat.completions.create(**ask())
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    size = len(TEXT.encode())
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (size + 3, size + 1)
    assert answer.usage.total_tokens == 2 * size + 4
    assert (answer.object, answer.model) == ("chat.completion", "echo")


def test_a_stream_begins_with_the_role_and_never_shows_half_a_character(server: Any) -> None:
    chunks = stream(server)
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert text_of(chunks) == TEXT
    assert not any("�" in (chunk.choices[0].delta.content or "") for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert all(chunk.choices[0].delta.content for chunk in chunks[1:-1])


@pytest.mark.parametrize("options", [{}, {"stream_options": {}}, {"stream_options": None}])
def test_a_stream_has_no_usage_unless_asked_for(server: Any, options: dict[str, Any]) -> None:
    response = server.client.post("/v1/chat/completions", json=ask(stream=True, **options))
    assert "usage" not in response.text
    assert response.text.endswith("data: [DONE]\n\n")


def test_usage_comes_once_behind_the_finish_reason_when_asked_for(server: Any) -> None:
    chunks = stream(server, stream_options={"include_usage": True})
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    usage = chunks[-1].usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_stream_headers_keep_proxies_from_buffering(server: Any) -> None:
    response = server.client.post("/v1/chat/completions", json=ask(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")


@pytest.mark.parametrize(
    ("stop", "expected"), [("🙂", "héllo 你好 "), (["done", "o 你"], "héll"), ("d", "héllo 你好 🙂 "), ("zz", TEXT)]
)
def test_stop_strings_end_the_text_alike_with_and_without_stream(server: Any, stop: Any, expected: str) -> None:
    whole = server.openai.chat.completions.create(**ask(stop=stop)).choices[0]
    assert (whole.message.content, whole.finish_reason) == (expected, "stop")
    assert text_of(stream(server, stop=stop)) == expected


def test_a_stop_string_can_be_kept(server: Any) -> None:
    body = ask(stop="🙂", include_stop_str_in_output=True)
    answer = server.client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == "héllo 你好 🙂"


def test_a_stop_string_in_the_prompt_does_not_count(server: Any) -> None:
    assert server.openai.chat.completions.create(**ask("abc", stop="<｜User｜>")).choices[0].message.content == "abc"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length_ends_an_answer(server: Any, name: str) -> None:
    answer = server.openai.chat.completions.create(**ask("abcdef", **{name: 3}))
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("abc", "length")


def test_the_context_bounds_an_answer_that_never_ends(server: Any) -> None:
    answer = server.client.post("/v1/chat/completions", json=ask("abc", ignore_eos=True)).json()
    assert answer["usage"]["total_tokens"] == 512
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("streamed", [False, True])
def test_n_choices_share_a_request(server: Any, streamed: bool) -> None:
    if streamed:
        chunks = stream(server, n=3)
        texts = {i: text_of([c for c in chunks if c.choices[0].index == i]) for i in range(3)}
    else:
        answer = server.openai.chat.completions.create(**ask(n=3))
        texts = {choice.index: choice.message.content for choice in answer.choices}
    assert texts == {0: TEXT, 1: TEXT, 2: TEXT}


def test_popular_extras_are_accepted(server: Any) -> None:
    fireworks: dict[str, Any] = {
        "top_k": 40,
        "temperature": 0.6,
        "top_p": 1,
        "max_tokens": 16384,
        "presence_penalty": 0,
    }
    extras: dict[str, Any] = {
        "user": "me",
        "metadata": {},
        "store": False,
        "parallel_tool_calls": True,
        "tools": [],
        "stop": None,
    }
    response = server.client.post("/v1/chat/completions", json=ask(**fireworks, **extras))
    assert response.json()["choices"][0]["message"]["content"] == TEXT


def test_paths_work_without_the_version_too(server: Any) -> None:
    assert server.client.post("/chat/completions", json=ask()).json()["choices"][0]["message"]["content"] == TEXT
    assert server.client.get("/models").json() == server.client.get("/v1/models").json()


def test_log_probabilities_have_the_shape_of_the_chat_api(server: Any) -> None:
    plain = server.openai.chat.completions.create(**ask(logprobs=True))
    entries = plain.choices[0].logprobs.content
    assert len(entries) == plain.usage.completion_tokens
    assert all(entry.top_logprobs == [] and entry.logprob < 0 for entry in entries)
    text = b"".join(bytes(entry.bytes) for entry in entries[:-1])
    assert text.decode() == TEXT

    streamed = [c.choices[0].logprobs for c in stream(server, logprobs=True, top_logprobs=2)]
    pieces = [entry for logprobs in streamed if logprobs for entry in logprobs.content]
    assert [(e.token, e.logprob) for e in pieces] == [(e.token, e.logprob) for e in entries]
    assert all(len(entry.top_logprobs) == 2 for entry in pieces)


def test_a_bias_makes_a_token_likely_or_impossible(server: Any) -> None:
    ended = server.openai.chat.completions.create(**ask("abc", logit_bias={"1": 100}))
    assert (ended.choices[0].message.content, ended.usage.completion_tokens) == ("", 1)
    [b] = server.tokenizer.encode("b")
    without = server.openai.chat.completions.create(**ask("abc", logit_bias={str(b): -100}, max_tokens=3))
    assert without.choices[0].message.content[0] == "a"
    assert "b" not in without.choices[0].message.content


def test_usage_tells_how_much_of_a_repeated_prompt_was_in_the_cache(server: Any) -> None:
    body = ask("a prompt that nobody has asked before this test", max_tokens=2)
    first, second, twice = (
        server.openai.chat.completions.create(**body, **extra).usage for extra in ({}, {}, {"n": 2})
    )
    cached = [usage.prompt_tokens_details.cached_tokens for usage in (first, second, twice)]
    assert cached[0] < 16
    assert cached[1] == cached[2] == 48


def test_models_are_listed_under_all_their_names(server: Any) -> None:
    assert [model.id for model in server.openai.models.list()] == ["echo", "org/echo"]
    assert server.openai.models.retrieve("org/echo").id == "org/echo"
    assert server.openai.chat.completions.create(**{**ask("a"), "model": "org/echo"}).model == "org/echo"


class TestCompletions:
    @pytest.mark.parametrize("prompt", ["", [], [[]], ["a", ""], 5, None, [1, "a"], [[1], ["a"]], [True]])
    def test_a_prompt_of_no_known_form_is_refused(self, server: Any, prompt: object) -> None:
        response = server.client.post("/v1/completions", json={"model": "echo", "prompt": prompt})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")

    @pytest.mark.parametrize("id_", [-1, 260])
    def test_a_token_id_outside_of_the_vocabulary_is_refused(self, server: Any, id_: int) -> None:
        response = server.client.post("/v1/completions", json={"model": "echo", "prompt": [5, id_]})
        assert response.status_code == 400
        assert f"token id {id_} is outside" in response.json()["error"]["message"]

    def test_a_bos_in_front_is_not_doubled_and_ids_pass_untouched(self, server: Any) -> None:
        ids = server.tokenizer.encode("abc")
        prompts = {"abc": [0, *ids], f"{BOS}abc": [0, *ids]}
        for prompt, expected in prompts.items():
            tokens = server.client.post("/tokenize", json={"prompt": prompt}).json()["tokens"]
            assert tokens == expected
            usage = server.openai.completions.create(model="echo", prompt=prompt, max_tokens=1).usage
            assert usage.prompt_tokens == 4
        assert server.openai.completions.create(model="echo", prompt=ids, max_tokens=1).usage.prompt_tokens == 3

    def test_several_prompts_make_several_choices(self, server: Any) -> None:
        body = {"model": "echo", "temperature": 0, "max_tokens": 4}
        both = server.openai.completions.create(prompt=["ab", "xyz"], n=2, **body)
        single = [server.openai.completions.create(prompt=prompt, **body).choices[0].text for prompt in ("ab", "xyz")]
        assert [choice.text for choice in both.choices] == [single[0], single[0], single[1], single[1]]

    def test_a_stream_says_the_same(self, server: Any) -> None:
        body = {"model": "echo", "prompt": "abc", "temperature": 0, "max_tokens": 6, "logprobs": 1}
        whole = server.openai.completions.create(**body).choices[0]
        chunks = list(server.openai.completions.create(**body, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
        assert len(whole.logprobs.token_logprobs) == 6


def test_text_is_tokenized_and_back(server: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    tokens = server.client.post("/tokenize", json={"messages": messages}).json()
    assert (tokens["count"], tokens["max_model_len"]) == (5, 512)
    text = server.client.post("/detokenize", json={"tokens": tokens["tokens"]}).json()["prompt"]
    assert text == f"{BOS}<｜User｜>hi<｜Assistant｜>"


def test_a_begun_answer_is_continued_without_a_new_bos(server: Any) -> None:
    body = ask("abcdef")
    body["messages"].append({"role": "assistant", "content": "abc", "prefix": True})
    answer = server.client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == "def"
    assert answer["usage"]["prompt_tokens"] == 3 + 6 + 3


def test_a_prompt_that_is_too_long_names_both_numbers(server: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.chat.completions.create(**ask("x" * 600))
    assert caught.value.code == "context_length_exceeded"
    body = caught.value.response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["type"], body["error"]["param"]) == ("invalid_request_error", "messages")
    assert "603" in body["error"]["message"]
    assert "512" in body["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param", "word"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": ""}, "stop.0", "at least 1 character"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "required"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs the field json_schema"),
        ({"tool_choice": "required"}, None, "needs tools"),
        ({"timeout": 0}, "timeout", "greater than 0"),
        ({"min_tokens": 5, "max_tokens": 4}, None, "min_tokens 5"),
        ({"n": 13}, "n", "12 places"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "valid integer"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "token id 999"),
        ({"stop_token_ids": [260]}, "stop_token_ids", "token id 260"),
        ({"priority": "high"}, "priority", "valid integer"),
        ({"best_of": 3}, None, "best_of 3"),
        ({"top_logprobs": 2}, None, "needs logprobs"),
        ({"continue_final_message": True}, None, "assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "image_url"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages", "no assistant message before it calls one"),
        ({"messages": [{"role": "wizard", "content": "4"}]}, "messages.0.role", "'user'"),
    ],
)
def test_a_wrong_field_is_named_in_a_sentence(
    server: Any, change: dict[str, Any], param: str | None, word: str
) -> None:
    response = server.client.post("/v1/chat/completions", json=ask("a") | change)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert word in error["message"]
    if param:
        assert error["param"].startswith(param)


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b"\xff"])
def test_malformed_json_is_a_400_with_a_sentence(server: Any, content: bytes) -> None:
    response = server.client.post("/v1/chat/completions", content=content)
    assert response.status_code == 400
    assert "JSON" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("POST", "/v1/embeddings", 404), ("GET", "/v1/chat/completions", 405)],
)
def test_unknown_paths_and_methods_get_the_envelope(server: Any, method: str, path: str, status: int) -> None:
    response: httpx.Response = server.client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_an_unknown_model_is_not_found(server: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.chat.completions.create(**{**ask("a"), "model": "gpt"})
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("gpt")
