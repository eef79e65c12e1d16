"""``--check``: what would be served, and what would fail, in words."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gateway.cgi.variables import mount_variables
from gateway.cgi.warm.reuse import reuse_recipe
from gateway.cgi.warm.shebang import recipe_for
from gateway.clients.settings import ClientSettings
from gateway.confinement.confines import unenforced
from gateway.diagnosis import access_trouble, interpreter_trouble, is_a_script
from gateway.own_file import link_trouble
from gateway.privileges import Account, as_root
from gateway.settings import CgiMount, FastCgiMount, Route, Settings, SiteMount, StaticMount
from gateway.tls.report import certificate_report


def report(settings: Settings) -> int:
    """Print what `settings` would serve; return 0, or 1 if a program or a certificate would fail."""
    tls = settings.tls
    for address in settings.addresses:
        speaks = tls and not address.path and (not tls.listen or address in tls.listen)
        print(f"listen   {address}{', TLS' if speaks else ''}")
    lines, refused = certificate_report(tls) if tls else ([], 0)
    for words in lines:
        print(words)
    print(f"workers  {settings.workers}, each with up to {settings.max_programs} programs at once")
    for words in _limits(settings.clients):
        print(words)
    for route in settings.routes:
        if words := _own(route):
            print(f"limit    {route.prefix}: {words}")
        if route.auth:
            print(f"auth     {route.prefix} -> {route.auth.file}")
    for pool in settings.pools:
        print(f"pool     {pool.server.name}: {pool.server.connections} × {pool.program}")
        for directive in pool.directives:
            print(f"           {directive}")
    for mount in settings.mounts:
        if isinstance(mount, FastCgiMount):
            print(f"fastcgi  {mount.prefix} -> {mount.server.address}")
        elif isinstance(mount, SiteMount):
            print(f"site     {mount.prefix} -> {mount.directory}, {' '.join(mount.extensions)} by a pool")
        elif isinstance(mount, StaticMount):
            print(f"static   {mount.prefix} -> {mount.directory}{', with listings' if mount.listing else ''}")
    faults = list(_faults(settings))
    for words in faults:
        print(f"  FAILS  {words}")
    mounts = [mount for mount in settings.mounts if isinstance(mount, CgiMount)]
    troubles = sum(_report_mount(mount, settings.account, settings.named("--warm require")) for mount in mounts)
    warnings = unenforced(settings.confinements, tries_cgroup=True)
    for words in [*warnings, *([root] if (root := as_root(settings)) else [])]:
        print(f"warning  {words}")
    if refused:
        print(f"{refused} of the certificates would be refused")
    if troubles:
        print(f"{troubles} of the programs would fail")
    if faults:
        print("the server would not start")
    is_well = not (troubles or refused or faults)
    if is_well:
        print("all well")
    return 0 if is_well else 1


def _faults(settings: Settings) -> Iterator[str]:
    """Yield what the server could not write at its start. Nothing is created: it may be too early."""
    files = {"--access-log": settings.access_log, "--error-log": settings.error_log, "--pid-file": settings.pid_file}
    for option, path in files.items():
        if path not in ("", "-", "off") and (trouble := _trouble_of_file(path)):
            yield f"{settings.named(option)} {path}: {trouble}; name a file that can be written to"
    for address in settings.listen:
        directory = os.path.dirname(os.path.abspath(address.path))
        if address.path and not os.access(directory, os.W_OK | os.X_OK):
            what = "cannot be written to" if os.path.isdir(directory) else "does not exist"
            yield f"{settings.named('--listen')} {address}: the directory {directory} {what}"
    paths = [os.path.abspath(pool.server.address.path) for pool in settings.pools if pool.server.address.path]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield f"listen of two pools is unix:{path}; give each its own"


def _trouble_of_file(path: str) -> str:
    if os.path.isdir(path):
        return "it is a directory"
    if trouble := link_trouble(path):
        return trouble
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        return f"the directory {directory} does not exist"
    there = path if os.path.exists(path) else directory
    return "" if os.access(there, os.W_OK) else f"{there} cannot be written to"


def _own(route: Route) -> str:
    """Return the limits of a route's own in words, "" for none."""
    limits = route.limits
    if not limits:
        return ""
    found = [
        f"a body of {limits.max_body} bytes",
        f"{limits.body:g} s for its pauses, {limits.send:g} s for those of the client",
        f"{limits.script:g} s for those of a program, {limits.queue:g} s in line",
    ]
    if limits.rate:
        found.append(f"{limits.rate.rate:g} requests a second of one client")
    if limits.connections:
        found.append(f"{limits.connections} at once")
    return ", ".join(found)


def _limits(clients: ClientSettings) -> list[str]:
    rate, proxy, real = clients.rate, clients.proxy_protocol, clients.real_ip
    found = []
    if rate:
        manner = " one after the other" if rate.delay else " at once"
        burst = f", and {rate.burst} more{manner}" if rate.burst else ""
        found.append(f"limit    {rate.rate:g} requests a second of one client{burst}")
    if clients.connections:
        found.append(f"limit    {clients.connections} connections of one client")
    if clients.exempt:
        found.append(f"exempt   {clients.exempt}")
    if proxy:
        where = ", ".join(map(str, proxy.listen)) or "all"
        found.append(f"trust    PROXY headers on {where} from {proxy.trust}")
    if real:
        found.append(f"trust    {real.header.decode()} of requests from {real.trust}")
    found += [f"auth     {auth.prefix} -> {auth.file}" for auth in clients.auth]
    return found


def _report_mount(mount: CgiMount, workers: Account | None, required: str) -> int:
    print(f"cgi      {mount.prefix} -> {mount.directory}")
    for words in mount.confinement.words():
        print(f"           {words}")
    # The workers find the programs.
    for account in (mount.confinement.account, workers):
        if account and not _may_enter(account, mount.directory):
            closed = account.closed_directory(os.path.join(mount.directory, "x")) or mount.directory
            print(f"  FAILS  {mount.prefix}: user {account.name} may not enter {closed}: chmod +x {closed}")
            return 1
    return _report_programs(mount, required)


def _may_enter(account: Account, directory: str) -> bool:
    with account.acting():
        return os.access(directory, os.X_OK, effective_ids=True)


def _report_programs(mount: CgiMount, required: str) -> int:
    search = mount_variables(b"", mount.env).get(b"PATH", b"")
    troubles = 0
    for directory, _, names in sorted(os.walk(mount.directory, followlinks=False)):
        for name in sorted(names):
            path = os.path.join(directory, name)
            shown = mount.prefix + os.path.relpath(path, mount.directory)
            trouble = _trouble(path, mount.confinement.account)
            manner = _manner(path, mount, search) if mount.warm and not trouble and os.access(path, os.X_OK) else ""
            if manner.startswith("cold") and mount.warm == "require":
                trouble, manner = f"{manner} ({required})", ""
            if trouble:
                troubles += 1
            elif not os.access(path, os.X_OK):
                print(f"  -      {shown} is not executable: 403")
                continue
            words = trouble or manner
            print(f"  {'FAILS ' if trouble else 'ok    '} {shown}{': ' + words if words else ''}")
    return troubles


def _manner(path: str, mount: CgiMount, search: bytes) -> str:
    """Return how a script is run where warm interpreters are wanted, and why cold."""
    name = os.fsencode(path)
    recipe = reuse_recipe(name, search) if mount.warm == "reuse" else None
    if recipe:
        return f"run again and again by {os.fsdecode(b' '.join(recipe.arguments))}"
    try:
        found = recipe_for(name, search)
    except OSError as error:
        return f"cold: {error.strerror}"
    if isinstance(found, str):
        return f"cold: {found}"
    return f"warm, by {os.fsdecode(b' '.join((found.executable, *found.arguments[1:])))}"


def _trouble(path: str, account: Account | None) -> str:
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        return ""
    return interpreter_trouble(os.fsencode(path)) or (_trouble_of(path, account) if account else "")


def _trouble_of(path: str, account: Account) -> str:
    """Return what is in the way of a user who is to run a program."""
    is_script = is_a_script(os.fsencode(path))
    with account.acting():
        # The kernel's word, with access control lists; why it says so is read from the modes.
        enters = os.access(os.path.dirname(path), os.X_OK, effective_ids=True)
        executes = os.access(path, os.X_OK, effective_ids=True)
        reads = os.access(path, os.R_OK, effective_ids=True)
    if not enters:
        return f"user {account.name} may not enter {account.closed_directory(path) or os.path.dirname(path)}"
    if not executes:
        return f"it is not executable for user {account.name}: chmod +x {path}"
    if is_script and not reads:
        return f"its interpreter may not read it as user {account.name}: chmod +r {path}"
    return access_trouble(path, account)
