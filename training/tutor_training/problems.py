"""Arithmetic problems as tutoring dialogues: a question, the columns worked one by one, a final answer line.

A problem is held out when a hash of its operands says so, whatever the phrasing: no wording of a held-out sum is ever
trained on, so accuracy on held-out problems is not recall.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Operation = Literal["+", "-"]
Language = Literal["en", "zh"]

MAX_DIGITS = 4
_LARGEST = 9_999
_HELD_OUT_ONE_IN = 50

_QUESTIONS: dict[tuple[Language, Operation], tuple[str, ...]] = {
    ("en", "+"): (
        "What is {a} plus {b}?",
        "What is {a} + {b}?",
        "what is {a} plus {b}",
        "{a} + {b} = ?",
        "{a} + {b}",
        "{a}+{b}",
        "Calculate {a} + {b}.",
        "Compute {a} plus {b}.",
        "How much is {a} plus {b}?",
        "How much is {a} + {b}?",
        "Add {a} and {b}.",
        "Please add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "Can you work out {a} + {b}?",
    ),
    ("en", "-"): (
        "What is {a} minus {b}?",
        "What is {a} - {b}?",
        "what is {a} minus {b}",
        "{a} - {b} = ?",
        "{a} - {b}",
        "{a}-{b}",
        "Calculate {a} - {b}.",
        "Compute {a} minus {b}.",
        "How much is {a} minus {b}?",
        "How much is {a} - {b}?",
        "Subtract {b} from {a}.",
        "Please subtract {b} from {a}.",
        "Take {b} away from {a}.",
        "Can you work out {a} - {b}?",
    ),
    ("zh", "+"): (
        "{a}加{b}等于多少?",
        "{a}加{b}等于几?",
        "{a} 加 {b} 等于多少?",
        "{a}加{b}是多少?",
        "{a}+{b}=?",
        "{a} + {b} 等于多少?",
        "计算{a}+{b}。",
        "请计算 {a} + {b}。",
        "请问{a}加{b}等于多少?",
        "{a}与{b}的和是多少?",
    ),
    ("zh", "-"): (
        "{a}减{b}等于多少?",
        "{a}减{b}等于几?",
        "{a} 减 {b} 等于多少?",
        "{a}减{b}是多少?",
        "{a}-{b}=?",
        "{a} - {b} 等于多少?",
        "计算{a}-{b}。",
        "请计算 {a} - {b}。",
        "请问{a}减{b}等于多少?",
        "{a}减去{b}是多少?",
    ),
}


@dataclass(frozen=True)
class Wording:
    """The fixed phrases of a worked solution in one language."""

    columns: tuple[str, ...]
    compared: str
    digits: str
    turned: str
    opening: str
    line: str
    carry: str
    borrow: str
    join: str
    stop: str
    conclusion: str


WORDING: dict[Language, Wording] = {
    "en": Wording(
        columns=("Ones", "Tens", "Hundreds", "Thousands", "Ten thousands"),
        compared="{a} - {b}: {work}",
        digits="{left} digits {sign} {right} digits",
        turned="so the result is negative, turn it round",
        opening="{x} {op} {y}, column by column:",
        line="{name}: {work}",
        carry="write {digit}, carry 1",
        borrow="borrow 10: {work}",
        join=", ",
        stop=".",
        conclusion="So {a} {op} {b} = {result}.\nAnswer: {result}",
    ),
    "zh": Wording(
        columns=("个位", "十位", "百位", "千位", "万位"),
        compared="{a} - {b}:{work}",
        digits="{left} 位 {sign} {right} 位",
        turned="所以结果是负数,反过来算",
        opening="{x} {op} {y},逐位计算:",
        line="{name}:{work}",
        carry="写 {digit},进 1",
        borrow="借 10:{work}",
        join=",",
        stop="。",
        conclusion="所以 {a} {op} {b} = {result}。\n答案:{result}",
    ),
}

ANSWER_PREFIX: dict[Language, str] = {"en": "Answer: ", "zh": "答案:"}


@dataclass(frozen=True)
class Problem:
    """`a op b` with 0 ≤ a, b < 10⁴; `phrasing` chooses the question's wording."""

    a: int
    op: Operation
    b: int
    language: Language
    phrasing: int = 0

    @property
    def result(self) -> int:
        return self.a + self.b if self.op == "+" else self.a - self.b

    @property
    def question(self) -> str:
        templates = _QUESTIONS[self.language, self.op]
        return templates[self.phrasing % len(templates)].format(a=self.a, b=self.b)

    @property
    def solution(self) -> str:
        words = WORDING[self.language]
        lines = [_compared(self.a, self.b, words)] if self.op == "-" else []
        x, y = (self.b, self.a) if self.result < 0 else (self.a, self.b)
        lines.append(words.opening.format(x=x, op=self.op, y=y))
        lines += _added(x, y, words) if self.op == "+" else _subtracted(x, y, words)
        lines.append(words.conclusion.format(a=self.a, op=self.op, b=self.b, result=self.result))
        return "\n".join(lines)

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(f"{self.a}{self.op}{self.b}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % _HELD_OUT_ONE_IN == 0


def _digit_pairs(x: int, y: int) -> list[tuple[int, int]]:
    width = len(str(max(x, y)))
    return [(x // 10**i % 10, y // 10**i % 10) for i in range(width)]


def _added(x: int, y: int, words: Wording) -> list[str]:
    lines, carry = [], 0
    for name, (left, right) in zip(words.columns, _digit_pairs(x, y), strict=False):
        total = left + right + carry
        terms = f"{left} + {right}" + (" + 1" if carry else "")
        work = [f"{terms} = {total}"]
        carry, digit = divmod(total, 10)
        if carry:
            work.append(words.carry.format(digit=digit))
        lines.append(words.line.format(name=name, work=words.join.join(work) + words.stop))
    if carry:
        lines.append(words.line.format(name=words.columns[len(lines)], work="1" + words.stop))
    return lines


def _sign(left: int, right: int) -> str:
    return "<" if left < right else "=" if left == right else ">"


def _compared(a: int, b: int, words: Wording) -> str:
    """Which operand is larger: by their lengths, or else digit by digit from the left up to the first difference."""
    left, right = str(a), str(b)
    work = []
    if len(left) != len(right):
        sign = _sign(len(left), len(right))
        work.append(words.digits.format(left=len(left), sign=sign, right=len(right)))
    else:
        for one, other in zip(left, right, strict=True):
            work.append(f"{one} {_sign(int(one), int(other))} {other}")
            if one != other:
                break
    if a < b:
        work.append(words.turned)
    return words.compared.format(a=a, b=b, work=words.join.join(work) + words.stop)


def _subtracted(x: int, y: int, words: Wording) -> list[str]:
    """Each line names its digits first and computes then, so that every token follows from few and near ones."""
    lines, borrowed = [], 0
    for name, (top, bottom) in zip(words.columns, _digit_pairs(x, y), strict=False):
        less = f" - {bottom}" + (" - 1" if borrowed else "")
        value = top - bottom - borrowed
        borrowed = int(value < 0)
        work = f"{top}{less}"
        if borrowed:
            work += words.join + words.borrow.format(work=f"{top + 10}{less} = {value + 10}")
        else:
            work += f" = {value}"
        lines.append(words.line.format(name=name, work=work + words.stop))
    return lines


def final_answer(text: str) -> int | None:
    """The number on the final answer line of a solution, or None where there is no such line."""
    last = text.rstrip().rsplit("\n", 1)[-1]
    for prefix in ANSWER_PREFIX.values():
        number = last.removeprefix(prefix).strip()
        if last.startswith(prefix) and number.removeprefix("-").isdigit():
            return int(number)
    return None


def _operand(rng: random.Random) -> int:
    digits = rng.randint(1, MAX_DIGITS)
    if rng.random() < 0.15:  # runs of 0 and 9 are where carries and borrows travel far; uniform digits rarely show them
        return int("".join(rng.choice("0019995") for _ in range(digits)))
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _neighbour(rng: random.Random, a: int) -> int:
    """An operand close to `a`, so that comparing the two needs the last digits."""
    direction = rng.choice((-1, 1))
    distance = rng.randrange((10, 100, 1_000)[rng.randint(1, 3) - 1])
    return min(max(a + direction * distance, 0), _LARGEST)


def random_problem(rng: random.Random, *, held_out: bool) -> Problem:
    """One problem of the wanted side of the split."""
    while True:
        a = _operand(rng)
        b = _neighbour(rng, a) if rng.random() < 0.15 else _operand(rng)
        op: Operation = rng.choice(("+", "-", "-"))
        if op == "-" and a < b and rng.random() < 0.5:
            a, b = b, a
        language: Language = rng.choice(("en", "zh"))
        problem = Problem(a, op, b, language, rng.randrange(1_000))
        if problem.held_out == held_out:
            return problem


def held_out_problems(count: int, seed: int = 2026) -> list[Problem]:
    """`count` distinct problems that training never saw, the same for the same seed."""
    rng = random.Random(seed)
    found: dict[tuple[int, str, int], Problem] = {}
    while len(found) < count:
        problem = random_problem(rng, held_out=True)
        found.setdefault((problem.a, problem.op, problem.b), problem)
    return list(found.values())


@dataclass(frozen=True)
class Dialogue:
    """A conversation: an optional system text, then (user, assistant) turns."""

    system: str
    turns: tuple[tuple[str, str], ...]


_SYSTEM = (
    "You are a patient maths tutor.",
    "You are a helpful assistant.",
    "Answer step by step.",
    "你是一位耐心的数学老师。",
    "请一步一步解答。",
)
_SMALL_TALK: dict[Language, tuple[tuple[str, ...], str]] = {
    "en": (
        (
            "Hello",
            "Hi",
            "Hello!",
            "Hi there!",
            "hello",
            "hi",
            "Who are you?",
            "What are you?",
            "What can you do?",
            "Help",
            "Thanks!",
            "Thank you.",
            "Good morning",
            "Tell me a joke.",
            "How are you?",
            "Write a poem.",
            "What is the capital of France?",
            "Why is the sky blue?",
        ),
        "I am a small arithmetic tutor. Ask me to add or subtract two whole numbers of up to four digits.",
    ),
    "zh": (
        (
            "你好",
            "你好!",
            "您好",
            "你是谁?",
            "你会什么?",
            "帮助",
            "谢谢",
            "谢谢!",
            "早上好",
            "讲个笑话。",
            "写一首诗。",
            "法国的首都是哪里?",
        ),
        "我是一个小小的算术老师。请让我计算两个四位以内整数的加法或减法。",
    ),
}


def _turn(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.02:
        questions, answer = _SMALL_TALK[rng.choice(("en", "zh"))]
        return rng.choice(questions), answer
    problem = random_problem(rng, held_out=False)
    return problem.question, problem.solution


def training_dialogues(seed: int) -> Iterator[Dialogue]:
    """An endless stream of dialogues, most of one turn, none with a held-out problem."""
    rng = random.Random(seed)
    while True:
        system = rng.choice(_SYSTEM) if rng.random() < 0.1 else ""
        turns = 2 if rng.random() < 0.1 else 1
        yield Dialogue(system, tuple(_turn(rng) for _ in range(turns)))
