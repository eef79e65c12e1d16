"""``PYTHON path/to/fcgi_pool/runtime/__main__.py [OPTIONS] MODULE:CALLABLE``, or ``python -m fcgi_pool.runtime``.

Started by its path, this directory stands first on `sys.path`, where its modules would hide the application's; and
the directory of `fcgi_pool` must not stand there either, since it may be that of other packages. So the path is
cleaned, and the package is found by its file.
"""

from __future__ import annotations

import os
import sys


def _find_package() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.abspath(sys.path[0]) == here:
        del sys.path[0]
    from importlib.util import module_from_spec, spec_from_file_location  # noqa: PLC0415

    package = os.path.dirname(here)
    location = os.path.join(package, "__init__.py")
    spec = spec_from_file_location("fcgi_pool", location, submodule_search_locations=[package])
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {package}")
    module = sys.modules["fcgi_pool"] = module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "__main__":
    if not __package__:
        _find_package()
    from fcgi_pool.runtime.start import main

    sys.exit(main(sys.argv[1:]))
