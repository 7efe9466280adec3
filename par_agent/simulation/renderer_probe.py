"""`python -m par_agent.simulation.renderer_probe`: names the first usable Vulkan device, or says why there is none.

A program of its own, because a broken Vulkan driver may end the process that asks for devices: `par-agent doctor` and
`make setup` run it in a subprocess.
"""

from __future__ import annotations

import re
import sys


def usable_devices(summary: str) -> list[str]:
    """Names of the devices that SAPIEN's device summary marks as supported.

    >>> usable_devices("GPU: llvmpipe\\n  Supported: 1\\n\\nGPU: old card\\n  Supported: 0\\n")
    ['llvmpipe']
    """
    found = re.findall(r"^GPU: (.*)\n((?:[ \t]+.*\n?)*)", summary, flags=re.MULTILINE)
    return [name.strip() for name, properties in found if re.search(r"Supported:\s*1", properties)]


def main() -> int:
    """Prints one line; returns the exit status."""
    try:
        import cv2  # noqa: F401  needs the same system libraries, and ManiSkill needs it
        import sapien.render

        summary = sapien.render.get_device_summary()
    except (ImportError, OSError, RuntimeError) as error:
        print(error)
        return 1
    devices = usable_devices(summary)
    print(devices[0] if devices else f"Vulkan devices without ray tracing: {' '.join(summary.split()) or 'none'}")
    return 0 if devices else 1


if __name__ == "__main__":
    sys.exit(main())
