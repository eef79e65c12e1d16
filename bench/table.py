"""Plain tables and targets, as they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """First column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join(["", title, rule, line(head), rule, *map(line, rows), rule, *notes])


@dataclass(frozen=True)
class Target:
    """A value that was measured, and the bound that it must hold."""

    what: str
    value: float
    bound: float
    at_least: bool  # else at most
    unit: str = ""

    @property
    def is_met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.is_met else "MISSED"
        return f"{self.what}: {self.value:.2f}{self.unit} (target {sign} {self.bound:g}{self.unit}): {verdict}"
