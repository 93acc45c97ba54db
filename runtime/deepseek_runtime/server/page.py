"""The chat page at `/`: a few static files, open to everybody, for a browser cannot send a key before it has the page.

The policy in its headers lets the page run its own scripts and talk to this server, and nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).with_name("page")
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
))  # fmt: skip
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
PATHS = frozenset({"/"} | {f"/page/{path.name}" for path in FILES if path.suffix != ".html"})
"""What the page consists of; none of it needs an API key."""


def page_routes() -> list[Route]:
    """A route for each file; the page itself is at `/`."""
    return [Route("/" if path.suffix == ".html" else f"/page/{path.name}", _endpoint(path)) for path in FILES]


def _endpoint(path: Path) -> Callable[[Request], Awaitable[Response]]:
    content = path.read_bytes()

    async def file(_: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=MEDIA_TYPES[path.suffix])

    return file
