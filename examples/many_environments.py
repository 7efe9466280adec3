"""One policy acts in several environments at once, each of another task, in Gymnasium's vector environment."""

import gymnasium as gym
from mani_skill.utils.wrappers import CPUGymWrapper

from par_agent import PARPolicy, make_env

TASKS, STEPS, LIMIT = ("PushCube", "PickCube", "StackCube"), 200, 100

policy = PARPolicy.from_pretrained("par-mini")
env = gym.vector.SyncVectorEnv(
    [lambda task=task: CPUGymWrapper(make_env(task, policy, max_episode_steps=LIMIT)) for task in TASKS],
    autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,  # an ended row shows the next episode's first observation
)
policy.check(env)  # every row follows the instruction of its task
obs, _ = env.reset(seed=0)
solved = dict.fromkeys(TASKS, 0)
for _ in range(STEPS):
    obs, reward, terminated, truncated, info = env.step(policy.act(obs))
    for task, success in zip(TASKS, terminated, strict=True):
        solved[task] += int(success)
    policy.reset(env_idx=terminated | truncated)
env.close()
print(f"solved in {STEPS} control steps: {solved}")
