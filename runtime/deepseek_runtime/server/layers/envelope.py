"""Errors as Anthropic's API has them, for those who ask under its paths."""

from __future__ import annotations

from typing import Any

PATHS = ("/v1/messages", "/messages")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "properties": {"type": {"type": "string"}, "message": {"type": "string", "minLength": 1}},
            "required": ["type", "message"],
            "additionalProperties": False,
        },
        "request_id": {"type": "string"},
    },
    "required": ["type", "error", "request_id"],
    "additionalProperties": False,
}
"""JSON schema of `envelope`."""


def speaks_at(path: str) -> bool:
    """Whether errors at a path have this form."""
    return any(path == known or path.startswith(f"{known}/") for known in PATHS)


def envelope(status: int, message: str, request_id: str) -> dict[str, Any]:
    """The body of an error; the same object is the event that ends a stream."""
    type_ = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": type_, "message": message}, "request_id": request_id}
