"""`python -m perdure`: the same as the program `perdure`."""

import sys

from perdure.cli.main import main

sys.exit(main())
