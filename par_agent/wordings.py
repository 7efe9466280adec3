"""Other wordings of the tasks' instructions: some for training, and others that never enter training data."""

from __future__ import annotations

from par_agent.errors import UserError

TRAINING_WORDINGS: dict[str, tuple[str, ...]] = {
    "PushCube": (
        "Push the cube forward into the goal region.",
        "Move the cube ahead until it lies in the target area.",
        "Push the blue cube onto the target.",
        "Slide the cube across the table into the goal region.",
        "Shove the cube onto the red and white target.",
        "Bring the cube to the goal region by pushing it.",
        "Push the block in front of the robot to the goal.",
        "Get the cube into the goal region in front of it.",
        "The cube has to be pushed to the goal region.",
        "Use the gripper to push the cube into the target region.",
        "Push the cube until it is inside the goal.",
        "Move the cube to the target region with a push.",
    ),
    "PickCube": (
        "Pick up the red cube and bring it to the goal.",
        "Grasp the cube and move it to the green target.",
        "Lift the red cube to the target position.",
        "Take the red cube and carry it to the goal position.",
        "Grab the red cube and hold it at the goal.",
        "Pick the cube up and place it at the green ball.",
        "Move the red cube to the goal position with the gripper.",
        "The red cube has to be grasped and moved to the target.",
        "Get hold of the red cube and bring it to the target position.",
        "Grasp the red block, then move it to the goal.",
        "Raise the cube and stop at the target position.",
        "Carry the red cube to where the goal is.",
    ),
    "StackCube": (
        "Stack the red cube on the green cube.",
        "Pick up the red cube and place it on the green one.",
        "Put the red cube on top of the green cube and let go.",
        "Place the red cube on the green cube so that it stays there.",
        "Grasp the red cube, stack it on the green cube and release it.",
        "Lift the red cube and set it down on the green cube.",
        "The red cube has to stand on the green cube.",
        "Build a stack with the red cube above the green cube.",
        "Take the red cube and stack it on the green cube without it falling.",
        "Move the red cube onto the green cube and open the gripper.",
        "Set the red block on top of the green block and let it go.",
        "Pick the red cube up and release it on top of the green cube.",
    ),
}
"""Task -> wordings that training data may show."""

HELD_OUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "PushCube": (
        "Nudge the cube along the table till it sits on the bullseye.",
        "Please shift that block straight ahead onto the marked circle.",
        "Make the cube end up inside the circular goal.",
        "Drive the little blue box forward to its destination.",
        "The block belongs on the round mark in front; push it there.",
    ),
    "PickCube": (
        "Fetch the crimson block and take it over to the sphere.",
        "Please seize the cube and transport it to the marked spot.",
        "Bring the little red box up to the destination.",
        "Hold the red cube exactly where the green marker is.",
        "Get the cube off the table and to the place that is marked.",
    ),
    "StackCube": (
        "Make a tower of two: the green block below, the red one above.",
        "Please rest the crimson block upon the green one and withdraw.",
        "The green box should carry the red box once you are done.",
        "Leave the red block balanced on the green block.",
        "Fetch the red box and lay it over the green box, hands off afterwards.",
    ),
}
"""Task -> wordings for the variation ``language`` alone."""


def held_out_wordings(task: str) -> tuple[str, ...]:
    """A task's held-out wordings; raises UserError where there are none."""
    if task not in HELD_OUT_WORDINGS:
        raise UserError(f"task {task} has no held-out wordings; those that have: {', '.join(HELD_OUT_WORDINGS)}")
    return HELD_OUT_WORDINGS[task]
