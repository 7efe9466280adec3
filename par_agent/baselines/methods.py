"""The baselines by their names."""

from __future__ import annotations

from par_agent.baselines.act import ACT
from par_agent.baselines.bc_t import BCT
from par_agent.baselines.common import Method
from par_agent.baselines.dp import DP
from par_agent.baselines.icrt import ICRT
from par_agent.baselines.rdt import RDT

METHODS: dict[str, type[Method]] = {"act": ACT, "bc-t": BCT, "dp": DP, "icrt": ICRT, "rdt": RDT}
"""By the names of :data:`par_agent.baselines.NAMES`."""
