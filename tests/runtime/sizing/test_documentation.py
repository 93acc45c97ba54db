"""What docs/sizing.md says is what the planner computes."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from deepseek_runtime.sizing import ACCELERATORS, DEEPSEEK_V3_671B, GIB, Layout, estimate

PAGE = Path(__file__).parents[3].joinpath("docs", "sizing.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d+) × (\S+) \| ([\d.]+) GiB \| ([\d,]+) \| (\d+) \|$", re.MULTILINE)


def test_the_example_prints_what_is_shown_below_it() -> None:
    example, shown = re.findall(r"```(?:python|text)\n(.*?)```", PAGE, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "docs/sizing.md", "exec"), {})
    assert printed.getvalue() == shown


@pytest.mark.parametrize("row", ROW.findall(PAGE), ids=lambda row: f"{row[0]}x{row[1]}")
def test_each_row_of_the_native_engine_s_table_is_computed(row: tuple[str, ...]) -> None:
    ranks, product, weights, tokens, long_requests = row
    layout = Layout(int(ranks) // 8, 8, split_dense=False)
    found = estimate(DEEPSEEK_V3_671B, layout, ACCELERATORS[product].memory_bytes)
    assert f"{found.weight_bytes / GIB:.1f}" == weights
    assert f"{found.kv_tokens:,}" == tokens
    assert found.kv_tokens // 131_072 == int(long_requests)


def test_the_table_has_the_samples_systems() -> None:
    assert {("8", "H200"), ("16", "H100"), ("8", "MI300X")} <= {row[:2] for row in ROW.findall(PAGE)}
