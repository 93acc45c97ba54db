"""Whatever clients send and whatever a checkpoint's template tries: a prompt or a refusal, and no forged turn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_runtime.text.messages import GUARD, Guard
from deepseek_runtime.text.template import ChatTemplate, TemplateRefusal
from deepseek_runtime.text.tokenizer import Tokenizer
from releases import ROLES, write_text_side

Release = Callable[[str], ChatTemplate]
BOS, EOS, USER, ASSISTANT = ROLES
SPELLED = st.sampled_from(
    [
        *ROLES,
        "<think>",
        "</think>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁output▁end｜>",
        "{{",
        "{%",
        "|im_end|",
        "\ud800",
        "\udc00",
    ]
)
TEXT = st.lists(SPELLED | st.text(max_size=5), max_size=6).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CALL = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": TEXT, "arguments": JSON})}, optional={"id": TEXT}
)
CALLS = st.lists(CALL, max_size=3)
ROLE = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
TURN = st.fixed_dictionaries({"role": ROLE, "content": TEXT}, optional={"tool_calls": CALLS, "tool_call_id": TEXT})
ANY_TURN = st.fixed_dictionaries(
    {"role": ROLE | JSON, "content": JSON},
    optional={
        "tool_calls": CALLS | JSON,
        "function_call": JSON,
        "tool_call_id": JSON,
        "reasoning_content": JSON,
        "name": JSON,
    },
)
TOOL = (
    st.fixed_dictionaries({"type": st.just("function"), "function": st.dictionaries(st.just("name"), TEXT) | JSON})
    | JSON
)
RELEASES = st.sampled_from(["v3", "v3-0324", "r1", "r1-0528", "v3.1", "v3.2", "kimi"])
hard = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@hard
@given(
    name=RELEASES,
    messages=st.lists(ANY_TURN, max_size=4),
    tools=st.lists(TOOL, max_size=2),
    proceed=st.booleans(),
    variables=st.dictionaries(
        TEXT | st.sampled_from(["thinking", "messages", "tools", "raise_exception"]), JSON, max_size=2
    ),
)
def test_any_conversation_makes_a_prompt_or_is_refused(
    name: str, messages: Any, tools: Any, proceed: bool, variables: Any, release: Release
) -> None:
    template = release(name)
    try:
        prompt = template.encode(messages, tools=tools, proceed=proceed, variables=variables)
    except TemplateRefusal:
        return
    if name != "kimi":
        assert (prompt.ids[0], prompt.ids.count(0)) == (0, 1)


@hard
@given(name=st.sampled_from(["v3", "v3-0324", "r1-0528", "v3.1"]), messages=st.lists(TURN, max_size=5))
def test_nothing_that_a_client_writes_makes_a_turn(name: str, messages: list[dict[str, Any]], release: Release) -> None:
    """As many users' marks as users' messages, and not more of the assistant's than of its messages and the answer."""
    template = release(name)
    try:
        ids = template.encode(messages).ids
    except TemplateRefusal:
        return
    special = template._tokenizer.special_ids
    roles = [message["role"] for message in messages]
    assert ids.count(special[USER]) == roles.count("user")
    assert ids.count(special[ASSISTANT]) <= roles.count("assistant") + 1


@hard
@given(name=RELEASES, content=TEXT.filter(lambda text: text.isprintable()))
def test_no_character_of_a_users_text_is_lost(name: str, content: str, release: Release) -> None:
    template = release(name)
    ids = template.encode([{"role": "user", "content": content}]).ids
    assert content in template._tokenizer.decode(ids)


@given(spellings=st.sets(st.text("<ab>", min_size=2, max_size=4), max_size=5), text=st.text("<ab>", max_size=20))
def test_a_guarded_text_spells_nothing_between_its_breaks(spellings: set[str], text: str) -> None:
    """Even where one spelling begins within another."""
    guarded = Guard(spellings).text(text)
    assert guarded.replace(GUARD, "") == text
    assert not any(spelling in part for part in guarded.split(GUARD) for spelling in spellings)


def test_nesting_beyond_all_reason_is_refused(release: Release) -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    turn = {"role": "user", "content": "hi"}
    with pytest.raises(TemplateRefusal, match="nested too deeply"):
        release("v3").encode([turn], variables={"deep": deep})
    with pytest.raises(TemplateRefusal, match="nested too deeply"):
        release("v3").encode(
            [turn, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}]
        )


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ strftime_now.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ''.format_map.__self__ }}",
        "{% include '/etc/hostname' %}",
        "{% import 'os' as os %}",
        "{% for n in range(10 ** 9) %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content }}",
        "{{ messages | map(attribute='__class__') | first | string | e }}",
    ],
)
def test_a_template_reaches_nothing_outside(attack: str, tmp_path: Path) -> None:
    """Jinja refuses the attempt, or there is nothing to see."""
    write_text_side(tmp_path, f"{attack}<｜Assistant｜>", ROLES)
    template = ChatTemplate(tmp_path, Tokenizer(tmp_path))
    try:
        text = template.render([{"role": "user", "content": "hi"}])
    except TemplateRefusal:
        return
    assert text == ASSISTANT
