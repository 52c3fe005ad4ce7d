"""``python -m faceswap``: the command line."""

from faceswap.cli import main

raise SystemExit(main())
