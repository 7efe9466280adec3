"""Fine-tunes the bundled policy on demonstrations of your own, from Python.

ManiSkill's `RecordEpisode` records them. Here the bundled policy demonstrates; it may as well be you, or a planner.
"""

from pathlib import Path

from mani_skill.utils.wrappers import RecordEpisode

from par_agent import PARPolicy, make_env
from par_agent.cli import render
from par_agent.training.config import LoggingConfig
from par_agent.training.finetune import Callback, FinetuneConfig, finetune

EPISODES, STEPS, TRAINED = 10, 200, 300
INSTRUCTION = "Push the cube into the circle."
RECORDED, RENDERED, RUN = Path("data/recorded"), Path("data/rendered/mine"), Path("runs/mine")


def record() -> Path:
    """A trajectory file of demonstrations, with the simulator's states."""
    policy = PARPolicy.from_pretrained("par-mini", task="PushCube")
    env = make_env("PushCube", policy, max_episode_steps=STEPS)
    env = RecordEpisode(env, str(RECORDED), save_video=False, trajectory_name="mine")
    for seed in range(EPISODES):
        obs, _ = env.reset(seed=seed)
        policy.reset()
        done = False
        while not done:
            obs, _, terminated, truncated, _ = env.step(policy.act(obs))
            done = bool(terminated or truncated)
    env.close()
    return RECORDED / "mine.h5"


class Print(Callback):
    """Tells how the policy does on the episodes that are held out of training."""

    def on_validation(self, step, metrics):
        print(f"after {step} steps: error of the actions {metrics['action_error']:.4f}")


if __name__ == "__main__":  # rendering starts processes that import this file
    trajectories = record()
    seen = {"like": "par-mini", "instruction": (INSTRUCTION,)}
    render.main(render.RenderConfig(trajectory=trajectories, out=RENDERED, **seen))
    options = {"steps": TRAINED, "logging": LoggingConfig(validate_every=50)}
    finetune(FinetuneConfig(data=(RENDERED,), init=Path("par-mini"), out=RUN, **options), callbacks=[Print()])
    print(PARPolicy.from_pretrained(RUN / "policy", INSTRUCTION))
