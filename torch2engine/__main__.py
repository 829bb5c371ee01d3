"""`python -m torch2engine`: the command line, also where its script is not on the path.

Enters: the words after it. Leaves: an exit code. Separate because Python looks for this name.
"""

from torch2engine.cli.entry import main

raise SystemExit(main())
