"""The page itself, in Gradio."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from ...deployment.predictor import PlaneReader, Predictor
from ...utils.errors import InputError
from .answers import POINTS, answer
from .films import Film, Films, read_film
from .render import show_answers, show_error

__all__ = ["launch"]

_CAVEAT = "Not for diagnosis. This is research software and no medical device."
_HINT = "<p class='mxa-hint'>Drop a frontal chest X-ray: PNG, JPEG or DICOM. The answer stands here.</p>"
_FORGOTTEN = "<p class='mxa-hint'>The film is no longer kept. Drop it again.</p>"
_ONE_MODEL = "<p class='mxa-hint'>To compare two models, start the page with both: mxa app MODEL MODEL.</p>"
_SHOW = "() => { if (innerWidth < 800) document.querySelector('.mxa-answer').scrollIntoView({behavior: 'smooth'}) }"
_WAITING = 64  # uploads
_LEFT_SECONDS = (60, 900)  # how often uploads without an answer are looked for, and how old they are then
# The browser asks nobody else, whatever Gradio's page holds.
_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; form-action 'self'; base-uri 'self'"
)
_HEADERS = ((b"content-security-policy", _POLICY), (b"referrer-policy", b"no-referrer"))


class _Policy:
    """Adds headers that tell the browser whom it may ask. In plain ASGI, so that streams end when a page is closed."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self.app(scope, receive, told)


def launch(models: Mapping[str, Predictor], examples: Sequence[Path], host: str, port: int, max_mb: int) -> gr.Blocks:
    """Serves the page from a thread.

    Args:
        models: What it offers, by name; the first is chosen.
        examples: X-rays that it offers.
        host: Address.
        port: Port.
        max_mb: Largest file, in megabytes.

    Raises:
        InputError: the host or the port cannot be had, or an example does not read.
    """
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks the page whether it is there, and would ask a proxy for it
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), host, "localhost", "127.0.0.1")))
    films = [read_film(path, _readers(models)) for path in examples]
    page = _build(models, films, max_mb)
    page.queue(max_size=_WAITING, default_concurrency_limit=1)
    try:
        page.launch(
            **{"server_name": host, "server_port": port, "prevent_thread_lock": True, "quiet": True, "share": False},
            **{"show_error": True, "footer_links": [], "max_file_size": f"{max_mb}mb", "ssr_mode": False},
            **{"pwa": False, "mcp_server": False, "inbrowser": False, "enable_monitoring": False},
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=_css(films),
            app_kwargs={"middleware": [Middleware(_Policy)], "docs_url": None, "redoc_url": None},
        )
    except OSError:
        raise InputError(
            f"{host}:{port} cannot be had: another program is there, or it is no address of this machine; "
            "give another --port or --host"
        ) from None
    return page


def _readers(models: Mapping[str, Predictor]) -> list[PlaneReader]:
    return [model.reader() for model in models.values()]


def _css(examples: Sequence[Film]) -> str:
    pictures = [f"#example-{i} {{ background-image: url({film.picture}); }}" for i, film in enumerate(examples)]
    return "\n".join([Path(__file__).with_name("page.css").read_text(encoding="utf-8"), *pictures])


def _build(models: Mapping[str, Predictor], examples: Sequence[Film], max_mb: int) -> gr.Blocks:
    names, films, readers = list(models), Films(), _readers(models)
    several = len(names) > 1

    def read(upload: gr.FileData) -> Film | InputError:
        path = Path(upload.path)
        try:
            return read_film(path, readers)
        except InputError as error:
            return error
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # its own, unless the same film is there under another name

    def shown(film: Film, one: str, first: str, second: str, point: str) -> tuple[str, str]:
        wanted = {one, first, second} if several else {one}
        found = {name: answer(name, models[name], film, point) for name in wanted}
        both = show_answers(film, [found[first], found[second]]) if several else _ONE_MODEL
        return show_answers(film, [found[one]]), both

    def uploaded(film: Film | InputError, one: str, first: str, second: str, point: str, page: gr.Request) -> tuple:
        if isinstance(film, InputError):
            films.drop(page.session_hash)
            return None, *[show_error(str(film))] * 2
        films.keep(page.session_hash, film)
        return None, *shown(film, one, first, second, point)

    def example(film: Film) -> Callable:
        def chosen(one: str, first: str, second: str, point: str, page: gr.Request) -> tuple:
            return uploaded(film, one, first, second, point, page)

        return chosen

    def changed(one: str, first: str, second: str, point: str, page: gr.Request) -> tuple[str, str]:
        film = films.of(page.session_hash)
        return shown(film, one, first, second, point) if film else (_FORGOTTEN, _FORGOTTEN)

    def closed(page: gr.Request) -> None:
        films.drop(page.session_hash)

    def html(text: str, **how: Any) -> gr.HTML:
        return gr.HTML(text, apply_default_css=False, **how)

    def choice(label: str, value: str) -> gr.Dropdown:
        return gr.Dropdown(names, value=value, label=label, min_width=220, visible=several)

    with gr.Blocks(title="mxa: chest X-rays", analytics_enabled=False, delete_cache=_LEFT_SECONDS) as page:
        html(f"<p role='note'>{_CAVEAT}</p>", elem_id="mxa-caveat")
        with gr.Row(elem_classes="mxa-page"):
            with gr.Column(elem_classes="mxa-take"):
                html("<h1>Try a chest X-ray</h1>")
                file = gr.File(label=f"X-ray, at most {max_mb} MB", height=150)
                file.preprocess = read  # what the functions get: the file itself is gone by then
                if examples:
                    html("<h2>Or an example</h2>")
                with gr.Row(elem_classes="mxa-examples", visible=bool(examples)):
                    buttons = [
                        gr.Button(Path(film.name).stem, elem_id=f"example-{i}", elem_classes="mxa-example")
                        for i, film in enumerate(examples)
                    ]
            with gr.Column(elem_classes="mxa-answer"), gr.Tabs():
                with gr.Tab("One model"):
                    one = choice("Model", names[0])
                    single = html(_HINT)
                with gr.Tab("Two models, compared"):
                    with gr.Row():
                        first, second = choice("Model A", names[0]), choice("Model B", names[several])
                    both = html(_HINT if several else _ONE_MODEL)
            with gr.Column(elem_classes="mxa-settings"):
                calibrated = any(model.info.calibration for model in models.values())
                points = [(text, point) for point, text in POINTS.items()]
                point = gr.Radio(points, value=points[0][1], label="Threshold", visible=calibrated)
        settings, results = [one, first, second, point], [single, both]
        how = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        file.upload(uploaded, [file, *settings], [file, *results], **how).then(None, js=_SHOW)
        for setting in settings:
            setting.input(changed, settings, results, **how)
        for button, film in zip(buttons, examples, strict=True):
            button.click(example(film), settings, [file, *results], **how).then(None, js=_SHOW)
        page.unload(closed)
    return page
