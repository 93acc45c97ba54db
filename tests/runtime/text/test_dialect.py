"""Template and parser are of one release, whichever the checkpoint's is."""

from collections.abc import Callable

import pytest

from deepseek_runtime.text.dialect import BARE, FENCED, ToolForm
from deepseek_runtime.text.template import ChatTemplate


@pytest.mark.parametrize(
    ("name", "known_as", "thinking", "opening", "tools"),
    [
        ("v3", "deepseek-v3", "never", "", FENCED),
        ("v3-0324", "deepseek-v3", "never", "", FENCED),
        ("r1", "deepseek-r1", "always", "<think>\n", FENCED),
        ("r1-0528", "deepseek-r1", "always", "<think>\n", FENCED),
        ("v3.1", "deepseek-v3.1", "switch", "<think>", BARE),
        ("v3.2", "deepseek-v3.1", "switch", "<think>", None),
        ("kimi", "plain", "never", "", None),
    ],
)
def test_a_release_is_recognised_by_what_its_template_writes(
    name: str,
    known_as: str,
    thinking: str,
    opening: str,
    tools: ToolForm | None,
    release: Callable[[str], ChatTemplate],
) -> None:
    dialect = release(name).dialect
    assert (dialect.name, dialect.thinking, dialect.opening, dialect.tools) == (known_as, thinking, opening, tools)
    assert (dialect.variable == "thinking") == (thinking == "switch")
