"""Which places are changed, how, and which are left alone."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from tests.mutation_score.alterations import alterations_of, altered_code


def changes(source: str) -> list[str]:
    found = alterations_of("m", textwrap.dedent(source))
    return [one.identity.removeprefix("m:") for one in found]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("a < b", ["a < b -> a <= b", "a < b -> a >= b"]),
        ("a == b != c", ["a == b != c -> a != b != c", "a == b != c -> a == b == c"]),
        ("a + b * c", ["a + b * c -> a - b * c", "b * c -> b + c"]),
        ("a and not b", ["a and (not b) -> a or not b", "not b -> b"]),
        ("x[1:n]", ["1:n -> :n", "1:n -> 1:", "1 -> 2"]),
        ("max(a, True)", ["max(a, True) -> min(a, True)", "True -> False"]),
        ("x.clamp(min=2.5)", ["2.5 -> 3.5"]),
        ("zeros(0) + zeros(n)", ["zeros(0) + zeros(n) -> zeros(0) - zeros(n)", "0 -> 1", "zeros(n) -> ones(n)"]),
        ("search(x, side='left')", ["'left' -> 'right'"]),
        ("a if b else c", ["b -> not b"]),
        ("[a, b]", ["[a, b] -> [b]", "[a, b] -> [a]"]),
    ],
)
def test_alterations_of_an_expression(statement: str, expected: list[str]) -> None:
    assert [one.removeprefix(": ") for one in changes(f"value = {statement}")] == expected


def test_alterations_of_statements_name_their_function_and_number_equal_ones() -> None:
    source = """
        class Kept:
            def add(self, n: int = 3) -> None:
                self.total += n
                for _ in range(n):
                    if n:
                        continue
                    self.note()
                    self.note()
                raise ValueError(f"no {n + 1}")
    """
    assert changes(source) == [
        "Kept.add: 3 -> 4",
        "Kept.add: self.total += n -> pass",
        "Kept.add: self.total += n -> self.total -= n",
        "Kept.add: n -> not n",
        "Kept.add: continue -> break",
        "Kept.add: self.note() -> pass",
        "Kept.add: self.note() -> pass #1",
        "Kept.add: raise ValueError(f'no {n + 1}') -> pass",
    ]


def test_alterations_leave_alone_what_decides_nothing() -> None:
    source = '''
        """Text."""
        from a import b
        Kind = Literal["a", "b"]
        @cache(maxsize=4)
        def f(x: "A | B") -> tuple[int, 3]:
            """Text."""
            logger.warning("text %d", 3)
            assert x > 0
            return cast("int", zip(x, strict=True))
    '''
    assert changes(source) == []


def test_altered_code_makes_the_one_change() -> None:
    source = "def f(n):\n    return n < 3 and n > 0\n"
    names = [one.after for one in alterations_of("m", source)]
    results = []
    for number in range(len(names)):
        space: dict[str, Any] = {}
        exec(altered_code(source, "m.py", number), space)
        results.append([n for n in range(-1, 6) if space["f"](n)])
    assert dict(zip(names, results, strict=True)) == {
        "n < 3 or n > 0": [-1, 0, 1, 2, 3, 4, 5],
        "n <= 3": [1, 2, 3],
        "n >= 3": [3, 4, 5],
        "4": [1, 2, 3],
        "n >= 0": [0, 1, 2],
        "n <= 0": [-1, 0],
        "1": [2],
    }
