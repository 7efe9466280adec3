"""`BaselinePolicy`: a trained baseline as an agent for the benchmark, in one or many environments.

Letters of shapes: see :mod:`par_agent.modeling`; N steps are remembered, L + K actions predicted together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from par_agent.baselines.checkpoint import BaselineCheckpoint
from par_agent.baselines.common import History
from par_agent.errors import UserError
from par_agent.modeling.random_numbers import normal_rows
from par_agent.policy.chunk_policy import ChunkPolicy, Episodes, one_thread
from par_agent.policy.frames import Frames
from par_agent.policy.instructions import Instructions
from par_agent.tasks import TaskSpec
from par_agent.utils.json_fields import check


@dataclass
class _State(Episodes):
    """What is remembered of the environments, one row each."""

    tokens: Tensor
    """(B, N, F, D) observations, the newest last."""
    past_actions: Tensor
    """(B, N, L, A) normalised chunk before each of them."""
    seen: Tensor
    """(B,) int64 observations since the reset."""
    plans: Tensor
    """(B, n, L + K, A) the last ``n`` predictions in the controller's units, the newest first."""


class BaselinePolicy(ChunkPolicy[_State]):
    """Acts with a baseline: looks at a frame, predicts, executes a chunk, looks again.

    Args:
        checkpoint: folder of `par-agent train-baseline`.
        task: gives the instruction.
        device: where the model runs.
        context: observations remembered; None: as many as the method was trained for.
        n_action_steps: actions executed before the next frame; None: the chunk, as far apart as frames in training.
        deterministic: no random numbers: diffusion starts from zero, the likeliest Gaussian answers.
        ensemble: averages all predictions of an action, the weight of one falling by ``exp(-ensemble)`` for every frame
            that it is younger (ACT's temporal ensembling); None: only the newest counts. ICRT refuses it, since it
            reads its own predictions.
    """

    def __init__(
        self,
        checkpoint: str,
        task: TaskSpec,
        *,
        device: str = "cpu",
        context: int | None = None,
        n_action_steps: int | None = None,
        deterministic: bool = False,
        ensemble: float | None = None,
    ) -> None:
        check("context", context, int | None)
        check("n_action_steps", n_action_steps, int | None)
        check("deterministic", deterministic, bool)
        check("ensemble", ensemble, float | None)
        loaded = BaselineCheckpoint.load(checkpoint, device)
        self.model, config = loaded.model, loaded.model.config
        n_action_steps = config.chunk_length if n_action_steps is None else n_action_steps
        super().__init__(loaded.transforms, loaded.encoder, torch.device(device), n_action_steps)
        self.context = self.model.context if context is None else context
        if self.context < 1:
            raise UserError(f"context is {self.context}; it must be at least 1")
        if not 1 <= self.n_action_steps <= config.horizon:
            raise UserError(
                f"n_action_steps is {self.n_action_steps}; this checkpoint predicts {config.horizon} actions"
            )
        if self.model.prompted and self.n_action_steps != config.chunk_length:
            raise UserError(
                f"n_action_steps is {self.n_action_steps}; {loaded.method} reads the chunks that it executed, which "
                f"have {config.chunk_length} actions: leave n_action_steps out"
            )
        if self.model.prompted and ensemble is not None:
            raise UserError(
                f"ensemble is {ensemble}; {loaded.method} reads the chunks that it executed, and averaged ones are not "
                "those that it predicted: leave ensemble out"
            )
        if ensemble is not None and self.n_action_steps == config.horizon:
            raise UserError(
                f"ensemble is {ensemble}; all {config.horizon} actions that this checkpoint predicts are executed, so "
                "that there is nothing to average: leave ensemble out, or execute fewer"
            )
        self.deterministic, self.ensemble = deterministic, ensemble
        self._text_encoder = loaded.text_encoder
        with torch.no_grad():
            self._text = self._read_text(task.instruction)
            self._prompt = self._read_prompt(loaded, task.instruction)
        shown = 0 if self._prompt is None else self._prompt.context_length.shape[1]
        limit = self.model.max_context
        if limit is not None and self.context + shown > limit:
            raise UserError(
                f"context is {self.context}; {loaded.method} reads {limit} steps at most, its prompt's "
                f"{shown} included: give a context of {limit - shown} or less"
            )

    @one_thread
    def reset(
        self,
        env_idx: Tensor | Sequence[int] | int | None = None,
        seed: int | None = None,
        instruction: str | Sequence[str] | None = None,
    ) -> None:
        """As :meth:`ChunkPolicy.reset`; ``instruction`` is, for all rows, one text or one per row, from now on."""
        rows = self._rows(env_idx)
        if instruction is not None:
            if env_idx is not None:
                raise UserError("a baseline takes instructions for all environments: leave env_idx out")
            self._text = self._read_text(instruction)
        self._forget(rows, seed)

    def _begin(self, batch: int) -> _State:
        config, size = self.model.config, self.action_size
        plans = -(-config.horizon // self.n_action_steps) if self.ensemble is not None else 1
        return _State(
            tokens=torch.zeros(batch, self.context, config.frame_tokens, config.width, device=self.device),
            past_actions=torch.zeros(batch, self.context, config.chunk_length, size, device=self.device),
            seen=torch.zeros(batch, dtype=torch.long, device=self.device),
            plans=torch.zeros(batch, plans, config.horizon, size, device=self.device),
            chunk=torch.zeros(batch, config.chunk_length, size, device=self.device),
            queue=torch.zeros(batch, self.n_action_steps, size, device=self.device),
            used=torch.full((batch,), self.n_action_steps, device=self.device),
            generators=self._generators(batch),
        )

    def _forget(self, rows: Tensor | None, seed: int | None) -> None:
        super()._forget(rows, seed)
        if self._state is not None:
            self._state.seen[rows] = 0

    def _plan(self, state: _State, frames: Frames, positions: Tensor, rows: Tensor) -> None:
        config = self.model.config
        tokens = self.model.stem(frames.latents[:, None], self.transforms.normalise_proprioception(positions)[:, None])
        state.tokens[rows] = torch.cat([state.tokens[rows, 1:], tokens], 1)
        state.past_actions[rows] = torch.cat([state.past_actions[rows, 1:], state.chunk[rows, None]], 1)
        state.seen[rows] += 1
        z = self.model.conditions(self._history(state, rows))[:, -1]
        noise = None
        if not self.deterministic:
            shape = config.horizon, config.action_size
            noise = normal_rows(shape, [state.generators[row] for row in rows.tolist()], self.device)
        actions = self.model.draw(z, noise)
        state.chunk[rows] = actions[:, : config.chunk_length]
        plan = self.transforms.denormalise_actions(actions, positions)
        state.plans[rows] = torch.cat([plan[:, None], state.plans[rows, :-1]], 1)
        state.queue[rows] = self._ensembled(state.plans[rows], state.seen[rows])
        state.used[rows] = 0

    def _history(self, state: _State, rows: Tensor) -> History:
        """What the model reads: the prompt, if there is one, then the observations of the episode."""
        seen, age = state.seen[rows, None], torch.arange(self.context - 1, -1, -1, device=self.device)
        context_length = (seen.clamp(max=self.context) - age).clamp(min=0)
        text = self._text.expand(len(state.used), -1, -1)[rows]
        history = History(state.tokens[rows], state.past_actions[rows], seen - age > 1, context_length, text)
        if self._prompt is None:
            return history
        names = ("tokens", "past_actions", "past_actions_known", "context_length")
        joined = {
            name: torch.cat([getattr(self._prompt, name).expand(len(rows), *[-1] * (value.ndim - 1)), value], 1)
            for name in names
            for value in [getattr(history, name)]
        }
        return dataclasses.replace(history, **joined)

    def _ensembled(self, plans: Tensor, seen: Tensor) -> Tensor:
        """Actions (B, n_action_steps, A) of overlapping predictions (B, n, L + K, A), the newest first."""
        if self.ensemble is None:
            return plans[:, 0, : self.n_action_steps]
        count, horizon = plans.shape[1:3]
        age = torch.arange(count, device=plans.device)
        step = age[:, None] * self.n_action_steps + torch.arange(self.n_action_steps, device=plans.device)
        present = (step < horizon) & (age < seen[:, None])[..., None]
        weights = torch.exp(self.ensemble * age)[:, None] * present
        actions = plans[:, age[:, None], step.clamp(max=horizon - 1)]
        return (actions * weights[..., None]).sum(1) / weights.sum(1)[..., None]

    def _read_text(self, instruction: str | Sequence[str]) -> Tensor:
        """Tokens of one text for all environments (1, S, D), or of one for each (B, S, D)."""
        features = Instructions.read(instruction, self._text_encoder, self.device).features
        tokens: Tensor = self.model.stem.text(list(features))
        return tokens

    def _read_prompt(self, checkpoint: BaselineCheckpoint, instruction: str) -> History | None:
        """The demonstration that comes first, a batch of one; None for a method that is not prompted."""
        if not self.model.prompted:
            return None
        if instruction not in checkpoint.prompts:
            known = "; ".join(map(repr, sorted(checkpoint.prompts)))
            raise UserError(f"this checkpoint has no demonstration of {instruction!r} as prompt; it has: {known}")
        prompt = checkpoint.prompts[instruction]
        tokens = self.model.stem(
            prompt.latents[None].float().to(self.device), prompt.proprioception[None].to(self.device)
        )
        context_length = torch.arange(1, len(prompt.past_actions) + 1, device=self.device)[None]
        past = prompt.past_actions[None].to(self.device)
        return History(tokens, past, prompt.past_actions_known[None].to(self.device), context_length, self._text)
