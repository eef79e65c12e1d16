"""The tests of faults under load in their long form: ``python -m tests.faults [OPTIONS OF PYTEST]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Run them one after the other, and show what they count."""
    os.environ["GATEWAY_FAULTS"] = "long"
    tests = Path(__file__).with_name("test_pool_faults.py")
    os.execv(sys.executable, [sys.executable, "-m", "pytest", "-v", "-rP", str(tests), *sys.argv[1:]])


if __name__ == "__main__":
    main()
