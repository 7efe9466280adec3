# /// script
# requires-python = "~=3.11"
# dependencies = [
#     "vla-eval",
#     "par-agent",
# ]
#
# [tool.uv.sources]
# vla-eval = { path = "../../..", editable = true }
# ///
"""PAR model server (arXiv 2508.09822), by the open implementation `par_agent`.

The server itself is part of that package; it answers every observation with the next action of the current chunk and
tells the benchmark how often it reads an image (``frame_every``).
"""

from vla_eval.model_servers.serve import run_server

from par_agent.vla_eval.server import PARModelServer

__all__ = ["PARModelServer"]

if __name__ == "__main__":
    run_server(PARModelServer)
