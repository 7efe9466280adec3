"""The bundled PAR policy pushes a cube in plain ManiSkill; a video of it is written to the folder `videos`."""

from mani_skill.utils.wrappers import RecordEpisode

from par_agent import PARPolicy, make_env

policy = PARPolicy.from_pretrained("par-mini", task="PushCube")
env = make_env("PushCube", policy, max_episode_steps=200)
env = RecordEpisode(env, "videos", save_trajectory=False, video_fps=20)

obs, _ = env.reset(seed=7)
policy.reset(seed=0)
success = False
while not success:
    obs, reward, terminated, truncated, info = env.step(policy.act(obs))
    success = bool(info["success"])
    if truncated.any():
        break
env.close()
print(f"success: {success}, after {int(info['elapsed_steps'])} steps; the video is in ./videos")
