"""`python -m nsvq.bench`."""

import sys

if __name__ == "__main__":
    # Inside, since the processes that measure memory import this file too and have no use for the program.
    from nsvq.bench.program import main

    sys.exit(main())
