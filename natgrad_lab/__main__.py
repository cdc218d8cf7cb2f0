"""`python -m natgrad_lab ...`: the command `natgrad`, on a machine where nothing may be installed yet."""

import sys

from natgrad_lab.bootstrap import main

if __name__ == "__main__":
    sys.exit(main())
