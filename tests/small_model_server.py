"""A vla-eval model server with a small policy, and ways to fail: for the tests; needs numpy and vla-eval alone."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import run_server
from vla_eval.specs import DimSpec


class SmallModelServer(PredictModelServer):
    """Trembles around the observed joint positions, by random numbers that follow from the episode's seed.

    Args:
        chunk_size: actions that the server keeps and hands out one by one; None: it answers with whole chunks.
        length: actions of a chunk.
        size: numbers per action.
        needs: one of the observation's images that has to be there.
        frame_every: as in `par_agent.vla_eval.messages`.
        control_mode: what the actions are said to be.
        fail: ``error``, ``late``, ``nan`` or ``nothing`` instead of an answer, from the second observation on.
        dies: the episode at whose start the process ends, from 1 on; None: it does not.
    """

    def __init__(
        self,
        chunk_size: int | None = None,
        length: int = 3,
        size: int = 8,
        needs: str | None = None,
        frame_every: int = 1,
        control_mode: str = "pd_joint_pos",
        fail: str = "",
        dies: int | None = None,
    ) -> None:
        super().__init__(chunk_size=chunk_size)
        self.length, self.size, self.needs, self.fail = length, size, needs, fail
        self.frame_every, self.control_mode = frame_every, control_mode
        self.dies = dies
        self.seen: list[dict[str, Any]] = []
        self.starts: list[dict[str, Any]] = []
        self.ends = 0
        self._generators: dict[str, np.random.Generator] = {}

    def predict(self, obs: dict[str, Any], ctx: SessionContext) -> dict[str, Any]:
        self.seen.append(obs)
        if self.needs is not None:
            assert obs["images"][self.needs].dtype == np.uint8 and obs["images"][self.needs].ndim == 3
        if len(self.seen) > 1 and self.fail:
            if self.fail == "error":
                raise ArithmeticError("made to fail")
            if self.fail == "late":
                time.sleep(2)
            if self.fail == "nothing":
                return {"action": 0}
        noise = self._generators[ctx.session_id].normal(0, 0.01, (self.length, self.size))
        actions = np.full((self.length, self.size), np.nan if self.fail == "nan" and len(self.seen) > 1 else 0.0)
        actions[:, : len(obs["state"])] += obs["state"][: self.size]
        return {"actions": (actions + noise).astype(np.float32)}

    async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
        await super().on_episode_start(config, ctx)
        self.starts.append(config)
        if len(self.starts) == self.dies:
            os._exit(1)
        task = config["task"]
        self._generators[ctx.session_id] = np.random.default_rng(task["seeds"][task["episode_idx"]])

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        await super().on_episode_end(result, ctx)
        self.ends += 1

    def get_observation_params(self) -> dict[str, Any]:
        return {"frame_every": self.frame_every} if self.frame_every > 1 else {}

    def get_action_spec(self) -> dict[str, DimSpec]:
        return {"actions": DimSpec("actions", self.size, self.control_mode)}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        return {}


if __name__ == "__main__":
    run_server(SmallModelServer)
