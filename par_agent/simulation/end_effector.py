"""Where the end effector is at given joint positions, by the simulator's own model of the robot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from par_agent.simulation.environment import TaskEnvironment


class EndEffector:
    """Forward kinematics of the robot in row ``row`` of an environment that has been reset.

    The point is the robot's tool centre point (``tcp``) where ManiSkill names one, else the origin of its last link.
    """

    def __init__(self, env: TaskEnvironment, row: int = 0) -> None:
        agent = env.simulation.agent
        articulation: Any = agent.robot._objs[row]
        link = agent.tcp if hasattr(agent, "tcp") else agent.robot.links[-1]
        self._link = int(link._objs[0].index)
        self._base = agent.robot.root_pose[row].sp  # the articulation's own is not that of a GPU's simulation
        self._model: Any = articulation.create_pinocchio_model()

    def positions(self, joints: np.ndarray) -> np.ndarray:
        """Positions (n, 3) float64, metres, in the world, for joint positions (n, P), radians."""
        found = []
        for row in np.asarray(joints, dtype=np.float64):
            self._model.compute_forward_kinematics(row)
            found.append((self._base * self._model.get_link_pose(self._link)).p)
        return np.array(found, dtype=np.float64).reshape(-1, 3)
