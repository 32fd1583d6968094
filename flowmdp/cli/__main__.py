"""`python -m flowmdp.cli`: the command, without the installed script."""

import sys

from flowmdp.cli import main

sys.exit(main())
