"""`ModelServerPolicy`: any vla-eval model server as a policy of the benchmark."""

from __future__ import annotations

import asyncio
import contextlib
import re
import warnings
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from par_agent.errors import UnavailableError, UserError
from par_agent.evaluation.policies import PolicySource
from par_agent.tasks import check_cameras
from par_agent.utils.hashes import hash_content
from par_agent.utils.json_fields import fits, is_count
from par_agent.vla_eval import MISSING
from par_agent.vla_eval.messages import read_actions, to_message

if TYPE_CHECKING:
    import numpy as np
    import torch

    from par_agent.tasks import TaskSpec

PREFIX = "vla-eval:"
"""What ``--policy`` starts with where it names a model server; its address follows."""
IMAGE_FORMATS = ("raw", "png", "jpeg")
"""How images travel; ``jpeg`` alone changes them."""
_RESUME = "start it, wait until it has loaded its model, and give the same command: it goes on where it stopped"


def model_server_source(reference: str, options: dict[str, Any]) -> PolicySource:
    """The policy that ``vla-eval:ws://HOST:PORT`` names. The server has to run already, because it is asked who it is.

    Options are arguments of :class:`ModelServerPolicy` but ``url``, ``task`` and ``server``, and ``name`` for tables
    and folders (default: the server's class). Warns where neither a name nor the server tells its weights from others'.
    """
    url = reference.removeprefix(PREFIX)
    if given := [name for name in ("url", "task", "server") if name in options]:
        raise UserError(f"policy option {given[0]!r} is not to be given: the benchmark sets it")
    with contextlib.closing(_Connection(url, options.get("timeout", 60))) as connection:
        identity, server = connection.identity, connection.server
    options = {"url": url, "server": identity, **options}
    if "name" not in options and server.get("model_server") != "PARModelServer":
        warnings.warn(
            f"the model server at {url} does not say which weights it serves, and results of others would go to the "
            "same folder: give each a name with --policy-kwargs name=NAME",
            stacklevel=2,
        )
    name = options.pop("name", server.get("model_server", "model-server"))
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(
            f"name is {name!r}; it becomes a folder's: give letters, digits and . + - _ with --policy-kwargs name=NAME"
        )
    lossless = ("image_format",) if options.get("image_format") != "jpeg" else ()
    neutral = ("url", "timeout", *lossless)
    return PolicySource("par_agent.vla_eval.client:ModelServerPolicy", options, name=name, neutral_options=neutral)


class ModelServerPolicy:
    """Acts with the model behind a vla-eval model server: sends observations, executes the actions that come back.

    A server answers with one action or with a chunk; a chunk is executed before the server is asked again.

    Args:
        url: ``ws://HOST:PORT``.
        task: gives the instruction and the size of actions.
        server: hash of what the server says of itself; another one is refused. None: any.
        n_action_steps: actions executed of a chunk; None: all.
        frame_every: send images in every n-th observation of an episode only; None: what the server asks for, else 1.
        image_format: one of :data:`IMAGE_FORMATS`.
        timeout: seconds to wait for an answer.

    Raises:
        UnavailableError: nobody answers, or another server.
        UserError: an option or what the server asks for is out of range, or ``vla-eval`` is not installed.
    """

    def __init__(
        self,
        url: str,
        task: TaskSpec,
        *,
        server: str | None = None,
        n_action_steps: int | None = None,
        frame_every: int | None = None,
        image_format: str = "raw",
        timeout: float = 60,
    ) -> None:
        if image_format not in IMAGE_FORMATS:
            raise UserError(f"image_format is {image_format!r}; it must be one of {', '.join(IMAGE_FORMATS)}")
        for name, value in (("n_action_steps", n_action_steps), ("frame_every", frame_every)):
            if value is not None and not is_count(value):
                raise UserError(f"{name} is {value!r}; it must be a whole number of at least 1")
        self._task, self._n_action_steps = task, n_action_steps
        self._instruction = task.instruction
        self._connection = _Connection(url, timeout, server)
        from vla_eval.protocol.numpy_codec import set_image_format

        set_image_format(image_format)
        asked = self._connection.observation_params.get("frame_every", 1)
        if not is_count(asked):
            self._connection.close()
            raise UserError(
                f"the model server at {url} asks for images in every {asked!r}-th observation (frame_every); it must "
                "be a whole number of at least 1"
            )
        self._frame_every = frame_every or asked
        self._answered = 0
        self._queue: deque[np.ndarray] = deque()
        self.action_size = task.action_size

    def check(self, spec: TaskSpec, track: str = "paper") -> None:
        """Warns of actions and observations that do not fit; raises UserError for cameras that the task lacks."""
        from vla_eval.specs import DimSpec, check_specs

        from par_agent.vla_eval.messages import action_interface, observation_interface

        camera = self._connection.observation_params.get("camera")
        if camera is not None:
            cameras = camera if isinstance(camera, list | tuple) else (camera,)
            check_cameras("the model server", cameras, spec, track)
        actions, observations = (
            {key: DimSpec.from_dict(value) for key, value in (self._connection.server.get(name) or {}).items()}
            for name in ("action_spec", "observation_spec")
        )
        expected = action_interface(spec.action_size, spec.control_mode)
        for mismatch in check_specs(actions, expected, observations, observation_interface(spec.joint_count)):
            warnings.warn(f"task {spec.name} and the model server: {mismatch}", stacklevel=2)

    @property
    def needs_frame(self) -> bool:
        """Whether the next :meth:`act` sends images."""
        return not self._queue and self._answered % self._frame_every == 0

    def reset(self, env_idx: Any = None, seed: int | None = None, instruction: Sequence[str] | None = None) -> None:
        """Starts an episode and tells the server the seed; ``instruction``: one text in place of the task's own."""
        self._instruction = self._task.instruction if instruction is None else instruction[0]
        self._queue.clear()
        self._answered = 0
        seeds = {} if seed is None else {"seeds": [seed]}
        task = {"name": self._task.name, "env_id": self._task.env_id, "episode_idx": 0, **seeds}
        self._connection.start_episode({"task": task})

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        """The next action (1, action_size) float32 of the one environment."""
        import torch

        if len(obs["agent"]["qpos"]) != 1:
            raise UserError("a model server acts in one environment at a time: use --backend cpu")
        if not self._queue:
            answer = self._connection.act(to_message(obs, self._instruction))
            self._queue.extend(read_actions(answer, self._task)[: self._n_action_steps])
            self._answered += 1
        return torch.from_numpy(self._queue.popleft())[None]

    def close(self) -> None:
        self._connection.close()


class _Connection:
    """vla-eval's own connection, used without an event loop; ``identity`` is what the server's has to be, None: any.

    Every failure closes it: a late answer would otherwise count as that to the next observation. The next episode
    connects anew, to a server with the same identity. Its methods raise UnavailableError where nobody or another
    server answers, and UserError where the server answers with an error or too late.
    """

    def __init__(self, url: str, timeout: float, identity: str | None = None) -> None:
        try:
            from vla_eval.connection import Connection
        except ImportError as error:
            raise UserError(MISSING.format(error)) from None
        if not _is_address(url):
            raise UserError(f"{url!r} is not the address of a model server; expected {PREFIX}ws://HOST:PORT")
        if not fits(timeout, float) or timeout <= 0:
            raise UserError(f"timeout is {timeout!r}; it must be a number of seconds above 0")
        self._url, self._timeout, self._expected = url, timeout, identity
        self._in_episode = False
        self._loop = asyncio.new_event_loop()
        self._connection: Any = Connection(url, timeout=timeout, max_retries=1)
        self._connect()

    @property
    def server(self) -> dict[str, Any]:
        """What the server said of itself."""
        return dict(self._connection.server_info or {})

    @property
    def observation_params(self) -> dict[str, Any]:
        """What the server asks of observations."""
        return self.server.get("observation_params") or {}

    @property
    def identity(self) -> str:
        """Hash of what the server said of itself."""
        return hash_content(self.server)

    def start_episode(self, start: dict[str, Any]) -> None:
        """Ends the episode that goes on, if any, and starts another."""
        if not self._connection.is_connected:
            self._connect()
        elif self._in_episode:
            self._run(self._connection.end_episode({}))
        self._run(self._connection.start_episode(start))
        self._check_identity()  # vla-eval connects anew by itself where the connection was lost
        self._in_episode = True

    def act(self, message: dict[str, Any]) -> dict[str, Any]:
        if not self._connection.is_connected:
            raise UnavailableError(f"the connection to {self._url} was lost during an episode; {_RESUME}")
        answer: dict[str, Any] = self._run(self._connection.act(message))
        return answer

    def close(self) -> None:
        if not self._loop.is_closed():
            with contextlib.suppress(Exception):
                self._loop.run_until_complete(self._connection.close())
            self._loop.close()

    def _connect(self) -> None:
        from vla_eval.protocol.messages import PROTOCOL_VERSION

        if self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        self._run(self._connection.connect(benchmark="par_agent"))
        self._expected = self._expected or self.identity
        self._check_identity()
        version = self.server.get("protocol_version")
        if version != PROTOCOL_VERSION:
            self.close()
            raise UserError(
                f"the server at {self._url} speaks version {version} of the protocol, the vla-eval installed here "
                f"version {PROTOCOL_VERSION}: install the same vla-eval on both sides"
            )

    def _check_identity(self) -> None:
        if self.identity != self._expected:
            self.close()
            raise UnavailableError(
                f"another model server answers at {self._url} than when the run began; start that one again, or run "
                "the benchmark anew"
            )

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        """What a call to the server returns; every failure closes the connection."""
        from websockets.exceptions import ConnectionClosed

        failure: UserError
        try:
            return self._loop.run_until_complete(call)
        except TimeoutError:
            advice = "--policy-kwargs timeout=N waits longer"
            failure = UserError(f"no answer from {self._url} within {self._timeout:g} s; {advice}")
        except ConnectionClosed as error:
            found = f"{self._url} closed the connection ({error}); the server's log says why"
            failure = UnavailableError(f"{found}; {_RESUME}")
        except ConnectionError as error:
            reason = error.__cause__ or error
            found = f"no model server answers at {self._url} ({type(reason).__name__}: {reason})"
            failure = UnavailableError(f"{found}; {_RESUME}")
        except (RuntimeError, ValueError) as error:  # what vla-eval makes of an error message or a foreign one
            failure = UserError(f"the model server at {self._url} failed: {error}")
        self.close()
        raise failure


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that no address has
        return False
