"""API keys: which routes ask for one, where keys come from, and what a folder that is not as it should be means."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from deepseek_runtime.server.auth import METRICS_PATHS, PROBE_PATHS, read_keys
from deepseek_runtime.server.page import PATHS as PAGE_PATHS

ServerMaker = Callable[..., Any]
KEY = {"authorization": "Bearer secret"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "first").write_text("secret\n")
    (tmp_path / "second").write_bytes(b"other\r\n")
    return tmp_path


def call(server: Any, route: Route, headers: dict[str, str]) -> httpx.Response:
    method = "POST" if "POST" in (route.methods or ()) else "GET"
    response: httpx.Response = server.client.request(method, route.path, headers=headers)
    return response


def paths_that_are_open(server: Any, headers: dict[str, str]) -> set[str]:
    """Paths of every route that answers something else than 401; those others answer it in the envelope."""
    found = set()
    for route in [route for route in server.http.app.routes if isinstance(route, Route)]:
        response = call(server, route, headers)
        if response.status_code != 401:
            found.add(route.path)
        else:
            error = response.json()["error"]
            assert error["type"] == "authentication_error"
            assert error.get("code") == (None if "/messages" in route.path else "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "secret"},
        {"authorization": "Basic secret"},
        {"authorization": "Bearer"},
        {"x-api-key": "secre"},
    ],
)
def test_every_route_asks_for_a_key_but_those_of_probes_scrapers_and_the_page(
    make_server: ServerMaker, folder: Path, headers: dict[str, str]
) -> None:
    server = make_server(api_key_folder=folder)
    server.open()
    assert paths_that_are_open(server, headers) == PROBE_PATHS | METRICS_PATHS | PAGE_PATHS


def test_a_route_that_is_added_later_asks_too(make_server: ServerMaker, folder: Path) -> None:
    server = make_server(api_key_folder=folder)
    server.http.app.router.routes.append(Route("/invocations", lambda _: PlainTextResponse("open")))
    for path in ("/invocations", "/nowhere", "/health/", "/%2Fhealth", "/metrics/x", "/HEALTH"):
        assert server.client.get(path).status_code == 401, path
    assert server.client.get("/invocations", headers=KEY).text == "open"


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"protect_metrics": True}, PROBE_PATHS | PAGE_PATHS),
        ({"protect_probes": True}, METRICS_PATHS | PAGE_PATHS),
        ({"chat_page": False}, PROBE_PATHS | METRICS_PATHS),
    ],
)
def test_metrics_probes_and_the_page_have_a_switch_each(
    make_server: ServerMaker, folder: Path, switches: dict[str, bool], expected: frozenset[str]
) -> None:
    server = make_server(api_key_folder=folder, **switches)
    server.open()
    assert paths_that_are_open(server, {}) == expected
    assert server.client.get("/metrics", headers=KEY).status_code == 200


def test_without_its_switch_there_is_no_page(make_server: ServerMaker) -> None:
    assert make_server().client.get("/").headers["content-type"].startswith("text/html")
    assert make_server(chat_page=False).client.get("/").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        KEY,
        {"authorization": "bearer other"},
        {"x-api-key": "secret"},
        {"authorization": "Bearer wrong", "x-api-key": "other"},
    ],
)
def test_any_key_opens_in_either_header(make_server: ServerMaker, folder: Path, headers: dict[str, str]) -> None:
    server = make_server(api_key_folder=folder)
    server.open()
    assert server.client.get("/v1/models", headers=headers).status_code == 200


def test_the_swap_of_a_mounted_secret_counts_at_once(make_server: ServerMaker, tmp_path: Path) -> None:
    """The kubelet writes a new folder and then moves the link `..data` to it; keys are links through that."""

    def write(version: str, key: str) -> None:
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "key").write_text(f"{key}\n")
        (tmp_path / "..data_tmp").symlink_to(f"..{version}")
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")

    write("2026_01", "secret")
    (tmp_path / "key").symlink_to("..data/key")
    server = make_server(api_key_folder=tmp_path)
    server.open()
    assert server.client.get("/v1/models", headers=KEY).status_code == 200
    write("2026_02", "rotated")
    assert server.client.get("/v1/models", headers=KEY).status_code == 401
    assert server.client.get("/v1/models", headers={"x-api-key": "rotated"}).status_code == 200


def test_an_empty_key_opens_nothing(make_server: ServerMaker, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    server = make_server(api_key_folder=tmp_path)
    for headers in ({}, {"authorization": "Bearer"}, {"x-api-key": ""}):
        assert server.client.get("/v1/models", headers=headers).status_code == 401


def test_a_folder_that_is_gone_lets_nobody_in_and_says_so_once(
    make_server: ServerMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server(api_key_folder=tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        assert [server.client.get("/v1/models", headers=KEY).status_code for _ in range(3)] == [401] * 3
    assert [message for message in caplog.messages if "nobody is let in" in message] == [
        f"API keys: {tmp_path / 'gone'} cannot be read, nobody is let in: No such file or directory"
    ]


def test_a_file_that_cannot_be_read_does_not_shut_out_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:  # the tests may run as root, who can read everything
        if path.name == "second":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert read_keys(folder) == ([b"secret"], f"{folder / 'second'} cannot be read: Permission denied")
