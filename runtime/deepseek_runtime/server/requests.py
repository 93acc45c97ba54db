"""From a body to a job: reading, checking against the model's limits, encoding, compiling what is to be enforced."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from deepseek_runtime.engine.sampling import SamplingParams
from deepseek_runtime.server.errors import ApiError, from_validation
from deepseek_runtime.server.fields import Message, ResponseFormat, ToolField
from deepseek_runtime.server.generation import Job
from deepseek_runtime.server.schemas import ChatBody, CompletionBody, GenerationBody
from deepseek_runtime.server.service import Service
from deepseek_runtime.text.grammar import ANY_OBJECT, Grammar, GrammarError, JsonForm, Tool
from deepseek_runtime.text.parser import OutputParser
from deepseek_runtime.text.template import Prompt, TemplateRefusal

TIMEOUT_HEADER = "X-Request-Timeout"

Parsed = TypeVar("Parsed", bound=BaseModel)


async def read_body(request: Request, schema: type[Parsed]) -> Parsed:
    """The request's JSON body; ApiError 400 with a sentence if it is wrong. `limits` bounds its size."""
    try:
        value = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise from_validation(error) from error


async def chat_job(service: Service, body: ChatBody) -> Job:
    """The conversation as the model's chat template writes it, and what its dialect makes of the answer."""
    return await run_in_threadpool(_chat_job, service, body)


async def completion_job(service: Service, body: CompletionBody) -> Job:
    """Token ids as they are; texts with the beginning-of-sequence token in front, unless they bring it themselves."""
    return await run_in_threadpool(_completion_job, service, body)


def with_timeout(job: Job, seconds: str | None) -> Job:
    """The job with the time that a header allows, if there is one and it is less than the body's."""
    if seconds is None:
        return job
    try:
        allowed = float(seconds)
    except ValueError:
        allowed = 0.0
    if not allowed > 0:
        raise ApiError(400, f"the header {TIMEOUT_HEADER} must be a number of seconds, not {seconds!r}")
    return replace(job, timeout=min(allowed, job.timeout or allowed))


def encode_messages(
    service: Service,
    messages: Sequence[Message],
    *,
    tools: Sequence[ToolField] = (),
    proceed: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> Prompt:
    """The prompt that messages make; ApiError 400 with the template's own words if it does not take them."""
    plain = [message.model_dump(exclude_none=True) for message in messages]
    given = [tool.model_dump(exclude_none=True) for tool in tools] or None
    try:
        return service.template.encode(plain, tools=given, proceed=proceed, variables=variables)
    except TemplateRefusal as error:
        raise ApiError(400, str(error), param="messages") from error


def encode_chat(service: Service, body: ChatBody) -> Prompt:
    """The prompt of a chat request; ApiError 400 if it has tools and the model's template no form for them."""
    dialect = service.template.dialect
    if body.may_call and dialect.tools is None:
        raise ApiError(400, "this model's chat template has no known form for tool calls", param="tools")
    return encode_messages(
        service,
        body.messages,
        tools=body.tools if body.may_call else (),
        proceed=body.proceed,
        variables=_variables(dialect.variable, body),
    )


def encode_text(service: Service, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text, with at most one beginning-of-sequence token in front."""
    ids = service.tokenizer.encode(text)
    bos = service.tokenizer.bos_id
    needed = add_special_tokens and bos is not None and ids[:1] != [bos]
    return [bos, *ids] if needed and bos is not None else ids


def echoes(service: Service, body: CompletionBody) -> list[str]:
    """The prompt's text of every choice, where the answer is to begin with it."""
    if not body.echo:
        return []
    return [text for prompt in body.prompt for text in [_prompt_text(service, prompt)] * body.n]


def _prompt_text(service: Service, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    check_ids(service, prompt, "prompt")
    return service.tokenizer.decode(prompt)


def _chat_job(service: Service, body: ChatBody) -> Job:
    dialect = service.template.dialect
    prompt = encode_chat(service, body)
    job = _job(service, (tuple(prompt.ids),), body, "messages")
    grammar = _format_grammar(service, body.response_format, in_reasoning=prompt.in_reasoning)
    grammar = _call_grammar(service, body, in_reasoning=prompt.in_reasoning) or grammar
    return replace(
        job,
        markers=dialect.markers,
        may_reason=bool(dialect.think_begin),
        in_reasoning=prompt.in_reasoning,
        make_parser=partial(OutputParser, dialect, in_reasoning=prompt.in_reasoning, tools=body.may_call),
        make_mask=grammar.mask if grammar else None,
    )


def _completion_job(service: Service, body: CompletionBody) -> Job:
    prompts = tuple(_encode_prompt(service, prompt, body) for prompt in body.prompt)
    grammar = _format_grammar(service, body.response_format, in_reasoning=False)
    return replace(_job(service, prompts, body, "prompt"), make_mask=grammar.mask if grammar else None)


def _variables(switch: str | None, body: ChatBody) -> dict[str, Any]:
    """The client's variables for the template; what it said about reasoning goes to the one that switches it."""
    wanted = body.wants_thinking
    return body.chat_template_kwargs | ({switch: wanted} if switch and wanted is not None else {})


def _call_grammar(service: Service, body: ChatBody, *, in_reasoning: bool) -> Grammar | None:
    if not body.may_call:
        return None
    choice = body.tool_choice
    functions = [tool.function for tool in body.tools if not choice.names or tool.function.name in choice.names]
    tools = [Tool(function.name, function.parameters, function.strict) for function in functions]
    mode = choice.names[0] if choice.mode == "named" else choice.mode
    try:
        return service.grammars.tool_calls(
            tools,
            choice=mode,
            parallel=body.parallel_tool_calls,
            in_reasoning=in_reasoning,
            content=_json_form(body.response_format),
        )
    except GrammarError as error:
        raise ApiError(400, f"tools: {error}", param="tools") from error


def _format_grammar(service: Service, wanted: ResponseFormat | None, *, in_reasoning: bool) -> Grammar | None:
    form = _json_form(wanted)
    try:
        return service.grammars.json(form, in_reasoning=in_reasoning) if form else None
    except GrammarError as error:
        raise ApiError(400, f"response_format: {error}", param="response_format") from error


def _json_form(wanted: ResponseFormat | None) -> JsonForm | None:
    """The form that content is to have; None for plain text."""
    if wanted is None or wanted.type == "text":
        return None
    if schema := wanted.json_schema:
        return JsonForm(schema.definition, schema.strict)
    return JsonForm(wanted.definition) if wanted.definition else ANY_OBJECT


def _encode_prompt(service: Service, prompt: str | list[int], body: CompletionBody) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return tuple(encode_text(service, prompt, add_special_tokens=body.add_special_tokens))
    check_ids(service, prompt, "prompt")
    return tuple(prompt)


def check_ids(service: Service, ids: Iterable[int], field: str) -> None:
    """ApiError 400 for a token id that the vocabulary does not have; `field` is where it was found."""
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
    if len(prompts) * body.n > service.places:
        message = f"the request asks for {len(prompts) * body.n} answers, this server has {service.places} places"
        raise ApiError(400, message, param="n")
    room = limit - longest
    return Job(
        prompts=prompts,
        params=_sampling(service, body, max_tokens=min(body.wanted_tokens or room, room)),
        n=body.n,
        stops=body.stop,
        include_stop=body.include_stop_str_in_output,
        priority=body.priority,
        timeout=body.timeout,
    )


def _sampling(service: Service, body: GenerationBody, max_tokens: int) -> SamplingParams:
    check_ids(service, body.stop_token_ids, "stop_token_ids")
    check_ids(service, body.logit_bias, "logit_bias")
    ends = frozenset() if body.ignore_eos else service.tokenizer.stop_ids
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        seed=secrets.randbits(62) if body.seed is None else body.seed,
        stop_token_ids=ends | frozenset(body.stop_token_ids),
        min_tokens=body.min_tokens,
        logprobs=body.wanted_logprobs,
    )
