"""``--static`` out of the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gateway.settings import CgiMount, Mount, StaticMount
from gateway.usage import UsageError

if TYPE_CHECKING:
    import argparse


def static_mounts(
    options: argparse.Namespace, others: Iterable[Mount], split: Callable[[str, str, str], tuple[str, str]]
) -> list[StaticMount]:
    """Return the mounts of files; raise UsageError. `split` takes prefix and directory out of an option's text."""
    if options.listing and not options.static:
        raise UsageError("--listing: goes with --static, whose directories it lists")
    programs = [os.path.realpath(mount.directory) for mount in others if isinstance(mount, CgiMount)]
    mounts = []
    for text in options.static:
        prefix, directory = split("--static", text, "/")
        real = os.path.realpath(directory)
        for closed in programs:
            if os.path.commonpath((real, closed)) == closed:
                raise UsageError(f"--static {text}: {closed} holds the programs of --cgi-dir; name another directory")
        mounts.append(StaticMount(prefix, directory, follow_links=options.follow_links, listing=options.listing))
    return mounts
