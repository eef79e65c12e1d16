"""``python -m fcgi_pool``."""

import sys

from fcgi_pool.cli import main

if __name__ == "__main__":
    sys.exit(main())
