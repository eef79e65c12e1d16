"""Mistakes of the user."""


class UsageError(ValueError):
    """A mistake of the user; the text names the option, what is wrong and what would be right."""
