"""From a body to a job: reading, checking against the model's limits, encoding."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.server.errors import ApiError, from_validation
from deepseek_runtime.server.generation import Job
from deepseek_runtime.server.schemas import ChatBody, CompletionBody, GenerationBody, Message
from deepseek_runtime.server.service import Service
from deepseek_runtime.text.template import TemplateRefusal

BODY_LIMIT = 32 * 2**20

Parsed = TypeVar("Parsed", bound=BaseModel)


async def read_body(request: Request, schema: type[Parsed]) -> Parsed:
    """The request's JSON body; ApiError 413 if it is too large, 400 with a sentence if it is wrong."""
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > BODY_LIMIT:
            raise ApiError(413, f"the body is larger than {BODY_LIMIT // 2**20} MiB")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise from_validation(error) from error


async def chat_job(service: Service, body: ChatBody) -> Job:
    """The conversation as the model's chat template writes it."""
    ids = await encode_messages(service, body.messages, body)
    return _job(service, (tuple(ids),), body, "messages")


async def completion_job(service: Service, body: CompletionBody) -> Job:
    """Token ids as they are; texts with the beginning-of-sequence token in front, unless they bring it themselves."""
    prompts = await run_in_threadpool(lambda: tuple(_encode_prompt(service, p, body) for p in body.prompt))
    return _job(service, prompts, body, "prompt")


async def encode_messages(service: Service, messages: list[Message], body: ChatBody | None = None) -> list[int]:
    """Token ids of messages; ApiError 400 with the template's own words if it does not take them."""
    plain = [message.model_dump(exclude_none=True) for message in messages]
    proceed = body.proceed if body else False
    variables = body.chat_template_kwargs if body else None
    try:
        return await run_in_threadpool(lambda: service.template.encode(plain, proceed=proceed, variables=variables))
    except TemplateRefusal as error:
        raise ApiError(400, str(error), param="messages") from error


def encode_text(service: Service, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text, with at most one beginning-of-sequence token in front."""
    ids = service.tokenizer.encode(text)
    bos = service.tokenizer.bos_id
    needed = add_special_tokens and bos is not None and ids[:1] != [bos]
    return [bos, *ids] if needed and bos is not None else ids


def _encode_prompt(service: Service, prompt: str | list[int], body: CompletionBody) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return tuple(encode_text(service, prompt, add_special_tokens=body.add_special_tokens))
    _check_ids(service, prompt, "prompt")
    return tuple(prompt)


def _check_ids(service: Service, ids: Iterable[int], field: str) -> None:
    size = service.tokenizer.size
    wrong = next((id_ for id_ in ids if not 0 <= id_ < size), None)
    if wrong is not None:
        raise ApiError(400, f"token id {wrong} is outside of the vocabulary, 0 to {size - 1}", param=field)


def _job(service: Service, prompts: tuple[tuple[int, ...], ...], body: GenerationBody, field: str) -> Job:
    limit = service.max_model_len
    longest = max(map(len, prompts))
    if longest >= limit:
        message = f"the prompt has {longest} tokens, and prompt and answer together can have {limit}"
        raise ApiError(400, message, code="context_length_exceeded", param=field)
    room = limit - longest
    return Job(
        prompts=prompts,
        params=_sampling(service, body, max_tokens=min(body.wanted_tokens or room, room)),
        n=body.n or 1,
        stops=tuple(body.stop or ()),
        include_stop=body.include_stop_str_in_output,
        priority=body.priority or 0,
    )


def _sampling(service: Service, body: GenerationBody, max_tokens: int) -> SamplingParams:
    _check_ids(service, body.stop_token_ids or (), "stop_token_ids")
    _check_ids(service, body.logit_bias or (), "logit_bias")
    ends = frozenset() if body.ignore_eos else service.tokenizer.stop_ids
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_default(body.temperature, 1.0),
        top_p=_default(body.top_p, 1.0),
        top_k=max(body.top_k or 0, 0),
        min_p=_default(body.min_p, 0.0),
        presence_penalty=_default(body.presence_penalty, 0.0),
        frequency_penalty=_default(body.frequency_penalty, 0.0),
        repetition_penalty=_default(body.repetition_penalty, 1.0),
        logit_bias=body.logit_bias or {},
        seed=secrets.randbits(62) if body.seed is None else body.seed,
        stop_token_ids=ends | frozenset(body.stop_token_ids or ()),
        min_tokens=body.min_tokens,
        logprobs=body.wanted_logprobs,
    )


def _default(value: float | None, default: float) -> float:
    return default if value is None else value
