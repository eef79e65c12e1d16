"""``--check``: what would be served, and what would fail, in words."""

from __future__ import annotations

import os
import shlex

from gateway.diagnosis import interpreter_trouble
from gateway.settings import CgiMount, FastCgiMount, Settings, SiteMount


def report(settings: Settings) -> int:
    """Print what `settings` would serve; return 0, or 1 if a program would fail."""
    for address in settings.listen:
        print(f"listen   {address}")
    print(f"workers  {settings.workers}, each with up to {settings.max_programs} programs at once")
    for pool in settings.pools:
        print(f"pool     {pool.server.name}: {pool.server.connections} × {shlex.join(pool.command)}")
        for directive in pool.directives:
            print(f"           {directive}")
    for mount in settings.mounts:
        if isinstance(mount, FastCgiMount):
            print(f"fastcgi  {mount.prefix} -> {mount.server.address}")
        elif isinstance(mount, SiteMount):
            print(f"site     {mount.prefix} -> {mount.directory}, {' '.join(mount.extensions)} by a pool")
    troubles = sum(_report_mount(mount) for mount in settings.mounts if isinstance(mount, CgiMount))
    print(f"{troubles} of the programs would fail" if troubles else "all well")
    return 1 if troubles else 0


def _report_mount(mount: CgiMount) -> int:
    print(f"cgi      {mount.prefix} -> {mount.directory}")
    troubles = 0
    for directory, _, names in sorted(os.walk(mount.directory, followlinks=False)):
        for name in sorted(names):
            path = os.path.join(directory, name)
            shown = mount.prefix + os.path.relpath(path, mount.directory)
            trouble = _trouble(path)
            if trouble:
                troubles += 1
            elif not os.access(path, os.X_OK):
                print(f"  -      {shown} is not executable: 403")
                continue
            print(f"  {'FAILS ' if trouble else 'ok    '} {shown}{': ' + trouble if trouble else ''}")
    return troubles


def _trouble(path: str) -> str:
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        return ""
    return interpreter_trouble(os.fsencode(path))
