"""`python -m blemish` is the `blemish` command."""

import sys

from blemish.cli import main

sys.exit(main())
