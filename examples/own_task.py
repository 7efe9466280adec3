"""A task of your own: an environment, its description, and a policy that acts in it.

In this folder the benchmark takes it by name:

    par-agent benchmark --tasks own_task:SMALL_GOAL --policy par-mini --num-states 5 --policy-seeds 1
"""

from mani_skill.envs.tasks.tabletop.push_cube import PushCubeEnv
from mani_skill.utils.registration import register_env

from par_agent import PARPolicy, make_env
from par_agent.tasks import TaskSpec

STEPS = 200


@register_env("PushCubeSmallGoal-v1", max_episode_steps=STEPS)
class PushCubeSmallGoalEnv(PushCubeEnv):
    """Your own environment; here PushCube with a smaller goal."""

    goal_radius = 0.06


SMALL_GOAL = TaskSpec("PushCubeSmallGoal-v1", "Push the cube to the small goal.", max_steps=STEPS)

if __name__ == "__main__":
    # par-mini was not trained on this task: it is told what PushCube's demonstrations were told
    policy = PARPolicy.from_pretrained("par-mini", task="PushCube")
    env = make_env(SMALL_GOAL, policy)
    obs, _ = env.reset(seed=0)
    done = False
    while not done:
        obs, reward, terminated, truncated, info = env.step(policy.act(obs))
        done = bool(terminated or truncated)
    env.close()
    print("success:", bool(info["success"]), "after", int(info["elapsed_steps"]), "control steps")
