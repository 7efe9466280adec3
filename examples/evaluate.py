"""Evaluates the bundled policy by ManiSkill's conventions; videos of all episodes are in the folder `videos`."""

from mani_skill.utils.wrappers import RecordEpisode
from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

from par_agent import PARPolicy, make_env

TASK, EPISODES, STEPS = "PickCube", 5, 200

policy = PARPolicy.from_pretrained("par-mini", task=TASK)
env = make_env(TASK, policy, max_episode_steps=STEPS, reconfiguration_freq=1)  # every reset builds the scene anew
env = RecordEpisode(env, "videos", save_trajectory=False, video_fps=20)
env = ManiSkillVectorEnv(env, ignore_terminations=True, record_metrics=True)  # success does not end an episode

measured = []
obs, _ = env.reset(seed=0)
while len(measured) < EPISODES:
    obs, reward, terminated, truncated, info = env.step(policy.act(obs))
    if truncated.any():  # the observation is the next episode's first one
        measured.append({name: float(value[0]) for name, value in info["final_info"]["episode"].items()})
        policy.reset(env_idx=truncated)
env.close()
for name in ("success_once", "success_at_end", "return"):
    print(f"{name}: {sum(episode[name] for episode in measured) / EPISODES:.2f}")
