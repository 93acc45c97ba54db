"""The chat page in a real browser. With PAGE_SHOTS=FOLDER, pictures of it are left there for people to look at."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b>bold</b>"
MARKDOWN = (
    "## Title\n\n1. first **bold**\n2. second `code`\n\nA line\nand *another*.\n\n```python\nprint('<hi>')\n```\nend"
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        missing = "needs a browser: apt-get install chromium"
        pytest.fail(missing, pytrace=False) if os.environ.get("CI") else pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page of a server; what the browser complained about, or asked others for, fails the test."""
    complaints: list[str] = []
    contexts = []

    def visit(url: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 700}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(url) or complaints.append(request.url))
        page.on("console", lambda message: "Security Policy" in message.text and complaints.append(message.text))
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def model(release_server: Callable[[str], Any]) -> Any:
    """A server whose model reasons where it is asked to, and says what it is told to."""
    return release_server("v3.1")


def ask(page: Page, text: str) -> Locator:
    """Ask, and wait for the end of the answer; its turn."""
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    turn = page.locator(".turn.assistant").last
    expect(turn.get_by_role("button", name="Retry")).to_be_visible()
    return turn


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("PAGE_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_an_answer_is_shown_with_its_figures(model: Any, open_page: Callable[..., Page]) -> None:
    model.executor.say(MARKDOWN)
    page = open_page(model.url)
    picture(page, "1-empty")
    turn = ask(page, "Hello?")
    expect(turn.locator("ol li")).to_have_text(["first bold", "second code"])
    expect(turn.locator("strong")).to_have_text("bold")
    expect(turn.locator("pre")).to_have_text("print('<hi>')")
    assert "A line\nand another." in turn.locator(".answer").inner_text()
    expect(page.locator("#figures")).to_have_text(re.compile(r"^\d+ tokens · [\d.]+ tokens/s"))
    picture(page, "2-answer")


def test_html_in_an_answer_is_text(model: Any, open_page: Callable[..., Page]) -> None:
    model.executor.say(HOSTILE)
    page = open_page(model.url)
    turn = ask(page, HOSTILE)
    expect(turn.locator(".answer")).to_have_text(HOSTILE)
    assert page.locator(".turn img, .turn script, .turn b").count() == 0
    assert page.title() == "Chat"
    picture(page, "3-hostile")


def test_the_policy_lets_nothing_else_run(model: Any) -> None:
    headers = model.client.get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "<script>" not in model.client.get("/").text


def test_reasoning_is_folded_and_only_there_where_it_is_wanted(model: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(model.url)
    model.executor.say("plain")
    expect(ask(page, "Hello?").locator(".reasoning")).to_be_hidden()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Let the model reason first").check()
    page.get_by_role("button", name="Done").click()
    model.executor.say("Let me see.</think>Forty-two.")
    turn = ask(page, "And now?")
    expect(turn.locator(".answer")).to_have_text("Forty-two.")
    expect(turn.get_by_text("Let me see.")).to_be_hidden()
    turn.get_by_text("Reasoning").click()
    expect(turn.get_by_text("Let me see.")).to_be_visible()
    picture(page, "4-reasoning")


def test_an_answer_is_stopped_and_the_server_with_it(server: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(server.url)
    server.executor.gate.clear()
    for _ in range(4):
        server.executor.steps_allowed.release()
    page.get_by_label("Your message").fill("abcdefgh")
    page.keyboard.press("Enter")
    turn = page.locator(".turn.assistant")
    expect(turn.locator(".answer")).not_to_be_empty()
    assert turn.get_attribute("aria-busy") == "true"
    picture(page, "5-streaming")
    page.keyboard.press("Escape")
    expect(turn.get_by_text("Stopped.")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    server.executor.gate.set()
    page.wait_for_timeout(0)
    expect(turn.get_by_role("button", name="Retry")).to_be_visible()


def test_a_question_is_changed_and_an_answer_asked_for_again(model: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(model.url)
    model.executor.say("first")
    turn = ask(page, "One?")
    model.executor.say("second")
    turn.get_by_role("button", name="Retry").click()
    expect(page.locator(".turn.assistant .answer")).to_have_text(["second"])
    page.get_by_role("button", name="Edit").click()
    assert page.locator(".turn").count() == 0
    expect(page.get_by_label("Your message")).to_have_value("One?")
    model.executor.say("third")
    ask(page, "Two?")
    expect(page.locator(".turn.user .answer")).to_have_text(["Two?"])
    page.get_by_role("button", name="New").click()
    assert page.locator(".turn").count() == 0


def test_an_answer_is_copied(model: Any, open_page: Callable[..., Page]) -> None:
    model.executor.say("**copied** text")
    page = open_page(model.url, permissions=["clipboard-read", "clipboard-write"])
    ask(page, "Hello?").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "**copied** text"


def test_what_the_server_refuses_is_said(model: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(model.url)
    page.get_by_label("Your message").fill("long " * 4000)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("2048")
    picture(page, "6-refused")


def test_the_key_stays_in_the_tab(
    make_server: Callable[..., Any], open_page: Callable[..., Page], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("open sesame")
    server = make_server(api_key_folder=tmp_path)
    server.open()
    page = open_page(server.url)
    expect(page.get_by_role("alert")).to_contain_text("API key")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("API key").fill("open sesame")
    picture(page, "7-settings")
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(ask(page, "hello").locator(".answer")).not_to_be_empty()
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")
    assert "sesame" not in page.url


def test_settings_outlive_a_reload_and_are_sent(model: Any, open_page: Callable[..., Page]) -> None:
    page = open_page(model.url)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Longest answer").fill("3")
    page.get_by_role("button", name="Done").click()
    page.reload()
    model.executor.say("one two three four five")
    with page.expect_request("**/v1/chat/completions") as asked:
        turn = ask(page, "Hello?")
    body = asked.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["max_tokens"] == 3
    expect(turn.get_by_text("Cut off")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_light_or_dark_as_one_likes(model: Any, open_page: Callable[..., Page], theme: str) -> None:
    model.executor.say(MARKDOWN)
    page = open_page(model.url, color_scheme="light" if theme == "dark" else "dark")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Appearance").select_option(theme)
    page.get_by_role("button", name="Done").click()
    ask(page, "Hello?")
    red = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert (red < 64) is (theme == "dark")
    picture(page, f"8-{theme}")


def test_it_fits_a_phone(model: Any, open_page: Callable[..., Page]) -> None:
    model.executor.say(MARKDOWN + "\n\n" + "x" * 300 + "\n```\n" + "y" * 300 + "\n```")
    page = open_page(model.url, viewport={"width": 320, "height": 600}, has_touch=True, is_mobile=True)
    ask(page, "Hello? " + "z" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
    picture(page, "9-phone")


def test_everything_has_a_name_and_the_keyboard_reaches_it(model: Any, open_page: Callable[..., Page]) -> None:
    model.executor.say("fine")
    page = open_page(model.url)
    ask(page, "Hello?")
    for control in page.locator("button:visible, select:visible, textarea:visible").all():
        assert control.evaluate("node => (node.labels?.[0]?.textContent || node.textContent || '').trim()")
    expect(page.get_by_role("log", name="Conversation")).to_be_visible()
    page.get_by_label("Your message").focus()
    reached = set()
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim()"))
    assert {"New", "Settings", "Send", "Copy", "Edit", "Retry"} <= reached


def test_it_can_be_left_out(make_server: Callable[..., Any]) -> None:
    server = make_server(chat_page=False)
    assert server.client.get("/").status_code == 404
