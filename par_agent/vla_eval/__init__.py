"""Both ends of vla-eval's protocol: its model servers as policies of the benchmark (`client`), a PAR checkpoint as
one of its model servers (`server`), and the tasks as one of its benchmarks (`benchmark`).

`messages` says what travels between them and needs nothing; the others need the extra ``vla-eval``.
"""

MISSING = "vla-eval is missing ({}): pip install 'par-agent[vla-eval]'"
"""Error message if vla-eval cannot be imported; {} is the reason."""
