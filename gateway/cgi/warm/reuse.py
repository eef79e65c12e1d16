"""Which interpreters the scripts of a directory need, where they are run again and again in one process."""

from __future__ import annotations

import os
from dataclasses import replace

from fcgi_pool.lookup import RUNTIME
from gateway.cgi.warm.shebang import Recipe, recipe_for

# What a program says that a script has started does not come over FastCGI, and is logged all the same.
CATCHING = ("catch_workers_output=yes",)


def recipes_below(directory: str, search: bytes) -> list[Recipe]:
    """Return what runs the Python scripts below `directory`, each once; for `search` see `recipe_for`."""
    found: dict[Recipe, None] = {}
    for where, _, names in os.walk(os.fsencode(directory), followlinks=True):
        for name in sorted(names):
            recipe = reuse_recipe(os.path.join(where, name), search)
            if recipe:
                found[recipe] = None
    return list(found)


def pool_command(recipe: Recipe) -> list[str]:
    """Return what a process of the pool executes that runs the scripts of `recipe`."""
    return [*map(os.fsdecode, recipe.arguments), RUNTIME, "--runner", "scripts"]


def reuse_recipe(path: bytes, search: bytes) -> Recipe | None:
    """Return what runs the script at `path` in a process of a pool; None if it is none of Python."""
    try:
        recipe = recipe_for(path, search) if os.path.isfile(path) and os.access(path, os.X_OK) else ""
    except OSError:
        return None
    if isinstance(recipe, str) or recipe.kind != "python" or os.path.basename(path).startswith(b"nph-"):
        return None
    # Whose name such a process has is the same for all.
    return replace(recipe, arguments=(recipe.executable, *recipe.arguments[1:]), is_named_after_script=False)
