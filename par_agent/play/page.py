"""The page of `par-agent play`: gradio components around a :class:`~par_agent.play.live.Live`, behind a token."""

import hmac
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

from par_agent.errors import UserError
from par_agent.evaluation.policies import PolicySource
from par_agent.play.live import Live, View, pixel
from par_agent.tasks import PROTOCOL_STATES
from par_agent.utils.json_fields import short
from par_agent.utils.references import optional_module
from par_agent.visualization.causes import GOALS

TICK = 0.2
"""Seconds between two pictures while it runs."""
STEPS_A_TICK = 4
"""Control steps between them."""
CLICK = 4
"""Pixels of the image that the pointer may move in a click."""
HELP = """## A policy acts in ManiSkill
**run** lets it act, **step** executes one control step, **reset** begins anew. Drag the object in the picture, also
while the policy acts, or click on the table to put it there. The other pictures come with the policy's first plan."""
"""What stands at the top of the page."""
LARGEST = 1_000_000
"""Bytes of a request's body; the page's own have less than a thousand."""
KEPT = 60
"""Seconds for which gradio keeps the files of the pictures that it has shown."""


def import_gradio() -> Any:
    """The UI library."""
    return optional_module("gradio", "the page needs gradio", "play")


def build_page(live: Live, policies: dict[str, PolicySource], task: str, state: int) -> Any:
    """The page's gradio blocks: what is `live` shown, of a task and initial state, and `policies` to choose from."""
    gr = import_gradio()
    tasks = [task, *(name for name in GOALS if name != task)]
    with gr.Blocks(title="par_agent: a policy acts", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(HELP)
        told = gr.Markdown(elem_id="instruction")
        with gr.Row():
            chosen_policy = gr.Dropdown([*policies], value=next(iter(policies)), label="policy", elem_id="policy")
            chosen_task = gr.Dropdown(tasks, value=task, label="task", elem_id="task")
            chosen_state = gr.Slider(0, PROTOCOL_STATES - 1, state, step=1, label="initial state", elem_id="state")
        with gr.Row():
            run = gr.Button("run", variant="primary", elem_id="run")
            pause = gr.Button("pause", elem_id="pause")
            step = gr.Button("step", elem_id="step")
            reset = gr.Button("reset", elem_id="reset")
        status = gr.Textbox(show_label=False, container=False, interactive=False, elem_id="status")
        with gr.Row():
            shown: dict[str, Any] = {"interactive": False, "buttons": [], "format": "png"}
            with _draggable(gr) as draggable:
                image = gr.Image(label="simulator: drag the object, or click where to put it", elem_id="image", **shown)
            predicted = gr.Image(label="predicted: the end of this chunk", elem_id="predicted", **shown)
            attended = gr.Image(label="attention in the frame read last", elem_id="attention", **shown)
        timer = gr.Timer(TICK, active=False)
        outputs = [image, predicted, attended, status, told]

        # gradio passes on whatever a request holds, so its values are checked like those of a stranger.
        def load(policy: Any, task: Any, state: Any) -> Any:
            return _show(gr, lambda: live.load(policies[chosen(policy, policies)], chosen(task, tasks), state))

        def drag(event: gr.EventData) -> Any:  # type: ignore[name-defined]  # gradio needs a type here, not text
            return _show(gr, lambda: dragged(live, getattr(event, "start", None), getattr(event, "end", None)))

        def tick() -> Any:
            view = live.step(STEPS_A_TICK)
            # A tick that was under way when pause was clicked must not wake the timer again.
            return *_show(gr, lambda: view), gr.Timer(active=False) if view.finished else gr.skip()

        one: dict[str, Any] = {"concurrency_id": "simulation", "concurrency_limit": 1, "show_progress": "hidden"}
        page.load(lambda: _show(gr, live.view), None, outputs, **one)
        timer.tick(tick, None, [*outputs, timer], trigger_mode="once", **one)
        run.click(lambda: gr.Timer(active=True), None, timer)
        pause.click(lambda: gr.Timer(active=False), None, timer)
        step.click(lambda: _show(gr, live.step), None, outputs, **one)
        for event in (reset.click, chosen_policy.input, chosen_task.input, chosen_state.release):
            stopped = event(lambda: gr.Timer(active=False), None, timer)
            stopped.then(load, [chosen_policy, chosen_task, chosen_state], outputs, **one)
        draggable.release(drag, None, outputs, **one)
    return page


def chosen(name: Any, known: Iterable[str]) -> str:
    """What was chosen in a menu; raises UserError for what is not in it."""
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{short(name)} is not in the menu; it has: {', '.join(known)}")
    return name


def dragged(live: Live, start: Any, end: Any) -> View:
    """Moves the object as the pointer went, or to where it was clicked."""
    (x, y), (to_x, to_y) = pixel(start), pixel(end)
    if abs(to_x - x) <= CLICK and abs(to_y - y) <= CLICK:
        return live.put_object(to_x, to_y)
    return live.drag_object((x, y), (to_x, to_y))


def _draggable(gr: Any) -> Any:
    """What goes around an image; its release event has the pixels ``start`` and ``end`` of a drag, [x, y] each."""
    marked = "@children<div class='marker'></div>"
    options: dict[str, Any] = {"html_template": marked, "css_template": "gap: 0;", "min_width": 160}
    return gr.HTML(js_on_load=_read("drag.js"), elem_id="draggable", **options)


def _read(name: str) -> str:
    """A file of the page."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _show(gr: Any, action: Callable[[], View]) -> tuple[Any, ...]:
    """What the page shows after an action; bad input becomes a message on it."""
    try:
        view = action()
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None
    predicted, attention = (gr.Image(value=v, visible=v is not None) for v in (view.predicted, view.attention))
    return view.image, predicted, attention, view.status, f"Instruction: *{view.instruction}*"


class TokenGate:
    """Refuses with status 403 every path but those of an ASGI application mounted under ``/<token>``."""

    def __init__(self, app: Any, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            _, _, rest = scope["path"].partition("/")  # of "*", which OPTIONS may ask for, nothing is left
            given = rest.partition("/")[0].encode(errors="surrogatepass")
            if not (scope["path"].startswith("/") and hmac.compare_digest(given, self._token.encode())):
                await self._refuse(scope, send, 403, "open the address that par-agent play printed")
                return
            sizes = [value for name, value in scope.get("headers", ()) if name == b"content-length"]
            if any(not size.isdigit() or len(size) > 9 or int(size) > LARGEST for size in sizes):
                await self._refuse(scope, send, 413, f"a request has at most {LARGEST} bytes")
                return
        await self._app(scope, _limited(receive), send)

    async def _refuse(self, scope: dict[str, Any], send: Any, status: int, why: str) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": f"{status}: {why}\n".encode()})


def _limited(receive: Any) -> Any:
    """Ends a request as if its sender had gone when its body, whose size was not said before, becomes too large."""
    left = LARGEST

    async def limited() -> Any:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return limited


def guarded(page: Any, token: str) -> Any:
    """The page as an ASGI application under ``/<token>``."""
    gr = import_gradio()
    from fastapi import FastAPI

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    looks: dict[str, Any] = {"theme": theme, "css": _read("page.css"), "footer_links": []}
    return TokenGate(gr.mount_gradio_app(app, page, path=f"/{token}", ssr_mode=False, **looks), token)
