"""PAR as a policy of LeRobot: `--policy.type=par`. LeRobot imports this module when it looks for plug-ins."""

from lerobot_policy_par.configuration_par import ParConfig

__all__ = ["ParConfig"]
