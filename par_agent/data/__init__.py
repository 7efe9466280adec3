"""Demonstrations, rendered episodes and the statistics that normalise them."""
