"""The methods that the paper compares PAR with, small enough to be trained from scratch beside ``par-mini``.

All see what PAR sees (latents of the same frozen frame encoder, joint positions, the instruction), through the same
kind of convolutional stem, and are trained on the same windows, with the same normalisation, optimiser and loop.
Nothing heavy is imported here: ``benchmarks/run.py`` only needs the names.
"""

NAMES = ("act", "bc-t", "dp", "icrt", "rdt")
"""The baselines, as ``--method`` and ``--policy`` call them."""
