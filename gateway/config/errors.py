"""Mistakes in a configuration file."""

from __future__ import annotations

# Where something stands: ("routes", 1, "cgi"); tables by name, their elements by number from 0.
Where = tuple[str | int, ...]


class ConfigFileError(ValueError):
    """A mistake in the file; the text is one line that names file, line, key, and what would be right."""


class Mistake(ValueError):
    """Something wrong at a place of the document, which the text does not name."""

    def __init__(self, where: Where, words: str) -> None:
        super().__init__(words)
        self.where = where
