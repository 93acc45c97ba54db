"""One endpoint: where it is, how it is asked, and what its stream of events says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import orjson

DEFAULT_URL = "http://127.0.0.1:8000/v1"
CONNECT_SECONDS = 10.0

Chunk = dict[str, Any]
Result = TypeVar("Result")


class EndpointError(RuntimeError):
    """The endpoint did not answer as it should; the sentence says how."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An API by its base URL, usually ending in `/v1`. `timeout` is for silence, in seconds, not for a whole answer."""

    url: str
    key: str | None = None
    timeout: float = 600.0

    def models(self) -> list[str]:
        """Names of the models that are served."""
        with self._plain() as client:
            try:
                response = client.get("models")
            except httpx.HTTPError as error:
                raise EndpointError(self._unreachable(error)) from error
        raise_for(response.status_code, response.content)
        return [str(card["id"]) for card in parse(response.content, dict)["data"]]

    def chat(self, body: Mapping[str, Any]) -> Iterator[Chunk]:
        """Chunks of a streamed chat completion."""
        with self._plain() as client:
            try:
                with client.stream("POST", "chat/completions", content=_streamed(body)) as response:
                    if response.status_code != 200:
                        raise_for(response.status_code, response.read())
                    yield from filter(None, map(_chunk, response.iter_lines()))
            except httpx.HTTPError as error:
                raise EndpointError(self._unreachable(error)) from error

    async def chat_async(
        self, client: httpx.AsyncClient, body: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The same over a client of `open_async`, which many requests share."""
        try:
            async with client.stream("POST", "chat/completions", content=_streamed(body)) as response:
                if response.status_code != 200:
                    raise_for(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if chunk := _chunk(line):
                        yield chunk
        except httpx.HTTPError as error:
            raise EndpointError(self._unreachable(error)) from error

    def open_async(self, connections: int) -> httpx.AsyncClient:
        """A client for that many requests at a time."""
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx.AsyncClient(limits=limits, **self._options())

    def _plain(self) -> httpx.Client:
        return httpx.Client(**self._options())

    def _options(self) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        timeout = httpx.Timeout(self.timeout, connect=CONNECT_SECONDS)
        return {"base_url": self.url.rstrip("/") + "/", "headers": headers, "timeout": timeout}

    def _unreachable(self, error: httpx.HTTPError) -> str:
        reason = str(error) or type(error).__name__
        return f"{self.url} does not answer: {reason}"


def raise_for(status: int, content: bytes) -> None:
    """EndpointError with the endpoint's own words for anything but success."""
    if status == 200:
        return
    try:
        message = str(orjson.loads(content)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = content[:200].decode(errors="replace").strip() or "no further words"
    raise EndpointError(f"the endpoint answered {status}: {message}", status)


def parse(content: bytes, kind: Callable[[Any], Result]) -> Result:
    """JSON of an answer; EndpointError for anything else."""
    try:
        return kind(orjson.loads(content))
    except (ValueError, TypeError) as error:
        raise EndpointError(f"the endpoint answered with something that is not the API's JSON: {error}") from error


def _streamed(body: Mapping[str, Any]) -> bytes:
    return orjson.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})


def _chunk(line: str) -> Chunk | None:
    """The chunk on a line of the stream; None for all other lines. EndpointError for an error event."""
    field, _, data = line.partition(":")
    if field != "data" or data.strip() == "[DONE]":
        return None
    chunk = parse(data.encode(), dict)
    if error := chunk.get("error"):
        raise EndpointError(f"the endpoint gave up in the middle of the answer: {error.get('message', error)}")
    return chunk


def text_of(chunk: Mapping[str, Any]) -> tuple[str, str]:
    """Reasoning and content that a chunk brings."""
    deltas = [choice.get("delta") or {} for choice in chunk.get("choices") or []]
    reasoning = "".join(delta.get("reasoning_content") or delta.get("reasoning") or "" for delta in deltas)
    return reasoning, "".join(delta.get("content") or "" for delta in deltas)
