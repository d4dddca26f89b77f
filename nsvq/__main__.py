"""`python -m nsvq` is `nsvq`."""

import sys

from nsvq.cli import main

if __name__ == "__main__":
    sys.exit(main())
