"""What happens to pixels, joint positions and actions on their way into and out of the model.

One :class:`Transforms` object serves rendering, training and the policy, and is saved in the checkpoint.
"""

from __future__ import annotations

import numpy as np

from par_agent.errors import UserError


def crop_and_resize(
    image: np.ndarray, crop: tuple[int, int, int, int] | None, size: tuple[int, int] | None
) -> np.ndarray:
    """Crops (top, left, height, width) and resizes (height, width; area averaging) an image (H, W, 3) uint8.

    Raises:
        UserError: the crop does not lie inside the image.
    """
    if crop is not None:
        top, left, height, width = crop
        if (
            min(top, left) < 0
            or min(height, width) < 1
            or top + height > image.shape[0]
            or left + width > image.shape[1]
        ):
            raise UserError(
                f"crop (top, left, height, width) = {crop} does not lie inside the {image.shape[0]}x{image.shape[1]} image"
            )
        image = image[top : top + height, left : left + width]
    if size is not None and image.shape[:2] != tuple(size):
        import cv2

        image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)
