"""The configuration file: what may stand in it (`keys`), read with its mistakes in words (`read`), made into settings
(`build`), and described (`reference`). The command line's options are a short form of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gateway.config.errors import ConfigFileError, Mistake

if TYPE_CHECKING:
    from gateway.settings import Settings

__all__ = ["ConfigFileError", "Mistake", "effective", "read_file"]


def read_file(path: str, sockets: str = "") -> Settings:
    """Return the settings of a file; raise ConfigFileError. For `sockets` see `build.build`."""
    # What reads it is loaded where there is a file alone: it takes time and memory.
    from gateway.config.build import build  # noqa: PLC0415
    from gateway.config.read import located, read_document  # noqa: PLC0415

    document, text = read_document(path)
    try:
        return build(document, os.path.dirname(os.path.abspath(path)), sockets)
    except Mistake as mistake:
        raise located(path, text, mistake) from None


def effective(settings: Settings) -> str:
    """Return settings as a text: one line for each that has a value, nested ones by their place."""
    from gateway.config.show import shown_settings  # noqa: PLC0415

    return shown_settings(settings)
