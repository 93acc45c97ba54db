"""The dialogues that the tutor learns from are right, and the split between seen and held-out problems is clean."""

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from tutor_training.problems import (
    Problem,
    final_answer,
    held_out_problems,
    training_dialogues,
)

operands = st.integers(0, 9_999)
problems = st.builds(
    Problem, operands, st.sampled_from(["+", "-"]), operands, st.sampled_from(["en", "zh"]), st.integers(0, 50)
)
_EQUATION = re.compile(r"(-?\d+(?: [+-] \d+)+) = (-?\d+)")


def _value(sum_: str) -> int:
    first, *rest = sum_.split(" ")
    signed = zip(rest[0::2], rest[1::2], strict=True)
    return int(first) + sum(int(number) if sign == "+" else -int(number) for sign, number in signed)


@given(problems)
def test_every_equation_of_a_solution_is_true(problem: Problem) -> None:
    equations = _EQUATION.findall(problem.solution)
    assert equations
    assert all(_value(left) == int(right) for left, right in equations)


@given(problems)
def test_the_final_line_holds_the_result(problem: Problem) -> None:
    assert final_answer(problem.solution) == problem.result


@given(problems)
def test_the_question_names_both_numbers(problem: Problem) -> None:
    assert {str(problem.a), str(problem.b)} <= set(re.findall(r"\d+", problem.question))


@given(problems)
def test_the_split_ignores_wording_and_language(problem: Problem) -> None:
    other = Problem(problem.a, problem.op, problem.b, "zh", problem.phrasing + 1)
    assert problem.held_out == other.held_out


def test_text_without_an_answer_line_has_no_answer() -> None:
    assert final_answer("So 1 + 1 = 2.\nAnswer: two") is None
    assert final_answer("") is None


def test_training_never_sees_a_held_out_problem() -> None:
    held_out = {f"{p.a} {p.op} {p.b} = {p.result}" for p in held_out_problems(300)}
    turns = (answer for d in itertools.islice(training_dialogues(3), 3_000) for _, answer in d.turns)
    assert not any(conclusion in answer for answer in turns for conclusion in _conclusions(answer) & held_out)


def _conclusions(answer: str) -> set[str]:
    return {f"{left} = {right}" for left, right in _EQUATION.findall(answer.split("\n")[-2] if "\n" in answer else "")}
