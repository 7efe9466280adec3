"""``python -m par_agent``: the same as ``par-agent``."""

from par_agent.cli import main

raise SystemExit(main())
