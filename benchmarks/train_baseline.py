"""`par-agent train-baseline`."""

import sys

from par_agent.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-baseline", *sys.argv[1:]]))
