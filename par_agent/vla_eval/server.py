"""`PARModelServer`: a PAR checkpoint as a vla-eval model server.

    python -m par_agent.vla_eval.server --args.checkpoint par-mini --address 127.0.0.1:8000

or `UV_NO_SYNC=1 vla-eval serve --config benchmarks/vla-eval/par-mini.yaml --address 127.0.0.1:8000`, by uv, which is
told to leave the environment as it is. Without an address a server listens on all of a machine's.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from par_agent.cli.entry import run_command
from par_agent.evaluation.policies import PolicySource
from par_agent.policy.par_policy import PARPolicy
from par_agent.vla_eval import MISSING
from par_agent.vla_eval.messages import action_interface, episode_seed, from_message, observation_interface

try:
    from vla_eval.model_servers.base import SessionContext
    from vla_eval.model_servers.predict import PredictModelServer
    from vla_eval.model_servers.serve import run_server
    from vla_eval.specs import DimSpec
except ImportError as error:
    raise ImportError(MISSING.format(error)) from error


class PARModelServer(PredictModelServer):
    """Serves a checkpoint to any number of benchmarks; every session has an episode of its own.

    It answers every observation with one action, that of `PARPolicy` with the episode's seed. It tells the benchmark
    how often it reads images (``frame_every``): where it plans a chunk.

    Args:
        checkpoint: a bundled checkpoint's name, a folder, or ``org/name[@revision]`` on the Hugging Face Hub.
        device: where the model runs.
        seed: of episodes that start without one.
        inference: fields of :class:`~par_agent.modeling.config.InferenceConfig` in place of the checkpoint's.
    """

    def __init__(
        self,
        checkpoint: str = "par-mini",
        device: str = "cpu",
        *,
        seed: int = 0,
        inference: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        source = PolicySource(checkpoint)
        acts = json.dumps({"device": device, "seed": seed, **(inference or {})}, sort_keys=True)
        self._description = f"checkpoint {source.label} {source.fingerprint()}, {acts}"
        self._inference, self._device, self._seed = inference or {}, device, seed
        first = PARPolicy.from_pretrained(str(source.folder), device=device, **self._inference)
        self._checkpoint, self._n_action_steps = first.checkpoint, first.n_action_steps
        self._transforms = first.transforms
        self._seeds: dict[str, int] = {}
        self._policies: dict[str, PARPolicy] = {}

    def predict(self, obs: dict[str, Any], ctx: SessionContext) -> dict[str, Any]:
        """The next action (action_size,) float32 of the session's episode."""
        session = ctx.session_id
        if session not in self._policies:
            options = {"device": self._device, "seed": self._seeds.get(session, self._seed), **self._inference}
            self._policies[session] = PARPolicy(self._checkpoint, str(obs.get("task_description", "")), **options)
        return {"actions": self._policies[session].act(from_message(obs))[0].cpu().numpy()}

    async def on_episode_start(self, config: dict[str, Any], ctx: SessionContext) -> None:
        """Forgets the session's last episode."""
        await super().on_episode_start(config, ctx)
        self._policies.pop(ctx.session_id, None)
        seed = episode_seed(config)
        self._seeds[ctx.session_id] = self._seed if seed is None else seed

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        await super().on_episode_end(result, ctx)
        self._policies.pop(ctx.session_id, None)
        self._seeds.pop(ctx.session_id, None)

    def get_observation_params(self) -> dict[str, Any]:
        """How often an image is read, and of which camera."""
        return {"frame_every": self._n_action_steps, "send_state": True, "camera": self._transforms.camera}

    def get_action_spec(self) -> dict[str, DimSpec]:
        """Joint targets; the description tells apart checkpoints and ways to act with them."""
        return action_interface(self._transforms.action_size, "pd_joint_pos", self._description)

    def get_observation_spec(self) -> dict[str, DimSpec]:
        return observation_interface(self._transforms.joint_count)


if __name__ == "__main__":
    sys.exit(run_command("par_agent.vla_eval.server", lambda: run_server(PARModelServer)))
