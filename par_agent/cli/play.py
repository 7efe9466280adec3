"""`par-agent play`: a local page on which a policy acts; one can watch, pause, step, drag the object and reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from par_agent.errors import UserError
from par_agent.utils.checked import Checked, NonNegative, Range


@dataclass(frozen=True)
class PlayConfig(Checked):
    """Serves a page for this machine only; its address holds a random token, and requests without it are refused."""

    task: str = "PickCube"
    """Task by name; others can be chosen on the page."""
    state: NonNegative = 0
    """Number of the protocol's initial state."""
    policy: str = "par-mini"
    """Checkpoint folder, name of a bundled checkpoint, or org/name[@revision] on the Hub."""
    policy_kwargs: tuple[str, ...] = ()
    """Options of the policy as key=value."""
    device: str = "cpu"
    """Device that the policy runs on."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than 127.0.0.1 opens the page to everyone on the network who has the token."""
    port: Annotated[int, Range(0, 65_535)] = 7860
    """Port to listen on."""


def main(config: PlayConfig) -> int:
    """Serves until Ctrl-C."""
    import os
    import tempfile
    import threading

    with tempfile.TemporaryDirectory(prefix="par-agent-play-") as pictures:
        os.environ["GRADIO_TEMP_DIR"] = pictures  # gradio shows pictures from files; read when it is imported
        _serve(config)
        for thread in threading.enumerate():  # one in the middle of a step would still write its picture
            if thread.name.startswith("AnyIO worker"):
                thread.join(timeout=20)
    return 0


def _serve(config: PlayConfig) -> None:
    import contextlib
    import secrets
    import socket

    from par_agent.evaluation.policies import PolicySource
    from par_agent.play.live import Live
    from par_agent.play.page import build_page, guarded, import_gradio

    import_gradio()
    import uvicorn

    try:
        listening = socket.create_server((config.host, config.port))
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {config.host}:{config.port}: {error}; give another --port") from None
    given = PolicySource.from_options(config.policy, config.policy_kwargs, config.device)
    policies = {given.label: given}
    policies.setdefault("par-mini", PolicySource("par-mini", device=config.device))
    token = secrets.token_urlsafe(16)
    with listening, Live(given, config.task, config.state) as live:
        app = guarded(build_page(live, policies, config.task, config.state), token)
        port = listening.getsockname()[1]
        print(f"http://{config.host}:{port}/{token}/    (Ctrl-C ends it)", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
