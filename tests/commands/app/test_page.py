"""The page in a headless Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from mxa.deployment import open_predictor
from mxa.models.hub import SHIPPED

from ...waiting import free_port, wait_until

pytestmark = pytest.mark.app

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
# Writes down every host that Python looks up or connects to.
WATCH = """
import sys
import time
def watch(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1][0]
        with open({path!r}, "a") as file:
            print(host, file=file)
sys.addaudithook(watch)
"""


class Server:
    """``mxa app`` in a process of its own, its temporary files in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str | Path, **env: str):
        self.port = free_port()
        self.url, self.temporary, self.hosts = f"http://127.0.0.1:{self.port}", folder / "tmp", folder / "hosts"
        self.temporary.mkdir()
        (folder / "sitecustomize.py").write_text(WATCH.format(path=str(self.hosts)))
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mxa", "app", "--port", str(self.port), *map(str, arguments)],
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(self.temporary), **env},
        )

    def ready(self) -> Server:
        wait_until(lambda: "the page is at" in self.said(), self.process)
        assert self.process.poll() is None, self.said()
        return self

    def said(self) -> str:
        return self.log.read_text()

    def left(self) -> list[Path]:
        """What the page has written and not deleted, but for an empty folder that Gradio makes when it is imported."""
        (uploads,) = self.temporary.glob("mxa-app-*")
        return [path for path in uploads.rglob("*") if path.name != "vibe_edit_history"]

    def stop(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory, headed, exported):
    running = Server(tmp_path_factory.mktemp("server"), SHIPPED, headed, exported, "--max-mb", "3").ready()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser(program):
    sync = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright: make test-app does it")
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program("chromium"), args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, server):
    """Opens the page; no request of it may leave this machine."""
    contexts, asked = [], []

    def open_page(**how):
        context = browser.new_context(**how)
        context.set_default_timeout(60_000)  # other work on the same cores makes an answer slow
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.goto(server.url)
        page.get_by_role("tab", name="One model").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    hosts = {urlsplit(url).netloc for url in asked if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {f"127.0.0.1:{server.port}"}


def give(page, path, wait: str = ".mxa-result") -> None:
    page.set_input_files("input[type=file]", path)
    caption = page.locator(f"{wait}:visible", has_text=path.name).first
    caption.wait_for(timeout=60_000)


def row(page, finding: str) -> list[str]:
    found = page.locator(".mxa-result:visible tbody tr", has=page.get_by_role("rowheader", name=finding)).first
    return found.locator("td").all_inner_texts()[1:]


def test_a_png_a_dicom_and_a_jpeg_one_after_the_other(visit, server, png, film, tmp_path):
    from ...data.dicom_files import dataset, save

    page = visit()
    give(page, png)
    first = row(page, "Effusion")
    threshold = open_predictor(SHIPPED).info.calibration.thresholds["youden"]["Effusion"]
    assert float(first[1]) == pytest.approx(threshold, abs=1e-3)
    assert first[2] == ("yes" if float(first[0]) >= threshold else "no")
    assert page.locator(".mxa-canvas > img:visible").evaluate("e => e.naturalWidth") == 128
    pixels = np.asarray(Image.open(png)).astype(np.uint16) * 16
    dicom = save(tmp_path / "film.dcm", dataset(pixels, BitsStored=12, WindowCenter=2040, WindowWidth=4081))
    give(page, dicom)
    assert float(row(page, "Effusion")[0]) == pytest.approx(float(first[0]), abs=0.01)
    give(page, film)
    assert "Not for diagnosis" in page.get_by_role("note").inner_text()
    assert page.get_by_role("note").is_visible()
    assert page.locator("figcaption:visible").inner_text().endswith("not for diagnosis")
    assert server.left() == []


def test_another_threshold_and_another_model(visit, film, server):
    page = visit()
    give(page, film)
    few = page.locator(".mxa-result:visible .mxa-positive").count()
    page.get_by_label("Specificity 95 %").check()
    page.wait_for_function("n => document.querySelectorAll('.mxa-result .mxa-positive').length < n", arg=few)
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="exported").click()
    page.get_by_text("exported: it gives probabilities alone, no boxes and no maps").first.wait_for()
    assert page.locator("select:visible").count() == 0
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="headed").click()
    page.get_by_text("say where the model sees a finding").first.wait_for()
    assert page.locator("select:visible option").count() == 3
    assert server.left() == []


@pytest.mark.parametrize("kind", ["text", "huge", "cut", "large"])
def test_a_file_that_cannot_be_read_is_one_sentence(visit, server, png, tmp_path, kind):
    path = tmp_path / f"{kind}.png"
    if kind == "text":
        path.write_text("no image")
    elif kind == "huge":
        Image.fromarray(np.zeros((10_000, 9_000), np.uint8)).save(path)
    elif kind == "cut":
        path.write_bytes(png.read_bytes()[:3000])
    else:
        path.write_bytes(os.urandom(4_000_000))
    page = visit()
    if kind == "large":
        page.set_input_files("input[type=file]", path)
        page.get_by_text(re.compile("maximum allowed size")).first.wait_for(timeout=20_000)
    else:
        give(page, path, ".mxa-error")
        said = page.locator(".mxa-error:visible").inner_text()
        wanted = {"text": "does not decode", "huge": "9000 x 10000 pixels; at most", "cut": "does not decode"}[kind]
        assert said.startswith("This file cannot be read.") and wanted in said and str(server.temporary) not in said
    give(page, png)  # and the page goes on
    wait_until(lambda: server.left() == [], server.process, 20)
    assert server.left() == []


def test_two_models_are_compared_on_one_film(visit, film):
    page = visit()
    give(page, film)
    page.get_by_role("tab", name="Two models").click()
    page.locator("figure:visible").nth(1).wait_for()
    captions = page.locator("figcaption:visible").all_inner_texts()
    assert [SHIPPED in captions[0], "headed" in captions[1]] == [True, True]
    page.get_by_label("Model B").click()
    page.get_by_role("option", name="exported").click()
    page.locator("figcaption:visible", has_text="exported").wait_for()
    both = page.locator(".mxa-result:visible tbody", has=page.get_by_role("rowheader", name="Effusion"))
    numbers = both.locator("td.mxa-number").all_inner_texts()
    assert numbers[:3] == numbers[3:]  # the same weights


def test_everything_by_keyboard(visit):
    page = visit()
    reached = {}
    for _ in range(11):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "(e => [e.ariaLabel || e.innerText, getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        reached[name] = outline
    assert any("upload" in name for name in reached)
    assert {"00001373_038", "One model", "Two models, compared", "Model"} <= {*reached}
    assert {*reached.values()} == {"solid"}
    page.get_by_role("button", name="00001373_038").focus()
    page.keyboard.press("Enter")
    page.locator(".mxa-result:visible").wait_for(timeout=60_000)
    chooser, slider = page.get_by_label("Over the film").first, page.get_by_label("Opacity").first
    chooser.focus()
    page.keyboard.press("ArrowDown")
    layers = page.locator(".mxa-result:visible .mxa-layer")
    assert [layers.nth(i).evaluate("e => e.hidden") for i in range(3)] == [True, False, True]
    page.keyboard.press("Tab")
    assert slider.evaluate("e => e === document.activeElement")
    page.keyboard.press("End")
    assert layers.nth(1).locator("img").evaluate("e => getComputedStyle(e).opacity") == "1"
    page.keyboard.press("Home")
    assert layers.nth(1).locator("img").evaluate("e => getComputedStyle(e).opacity") == "0"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut(visit, film, width, scheme):
    page = visit(viewport={"width": width, "height": 844}, color_scheme=scheme)
    give(page, film)
    page.get_by_role("tab", name="Two models").click()
    page.locator("figure:visible").nth(1).wait_for()
    for tab in ("Two models", "One model"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for part in page.locator(".mxa-result:visible :is(table, figure, figcaption, select, input, p)").all():
            box = part.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width + 0.5, part.inner_text()
    dark = sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])) < 200
    assert dark == (scheme == "dark")


def test_twenty_uploads_at_once_are_answered_one_by_one(visit, server, film, tmp_path):
    pages = [visit() for _ in range(20)]
    for i, page in enumerate(pages):
        shutil.copy(film, tmp_path / f"film-{i}.jpg")
        page.set_input_files("input[type=file]", tmp_path / f"film-{i}.jpg")
    for i, page in enumerate(pages):
        page.locator("figcaption:visible").first.wait_for(timeout=120_000)
        assert page.locator("figcaption:visible").inner_text().startswith(f"film-{i}.jpg, ")
    wait_until(lambda: server.left() == [], server.process, 20)
    assert server.left() == []


def test_the_page_of_others_is_not_asked_for_the_film(visit, film):
    give(visit(), film)
    other = visit()
    other.get_by_label("Specificity 95 %").check()
    other.get_by_text("The film is no longer kept").first.wait_for()


def test_a_film_is_forgotten_when_its_page_is_closed(browser, film, monkeypatch):
    from mxa.commands.app import answers, page

    films = page.Films()
    monkeypatch.setattr(page, "Films", lambda *seconds: films)
    port = free_port()
    served = page.launch(answers.open_models({"small": SHIPPED}), [], "127.0.0.1", port, 3)
    try:
        visitor = browser.new_page()
        visitor.goto(f"http://127.0.0.1:{port}")
        give(visitor, film)
        shown = [key for key in films._films if "/" not in key]
        assert len(shown) == 1
        visitor.close()
        deadline = time.monotonic() + 60
        while films.of(*shown) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert films.of(*shown) is None
    finally:
        served.close(verbose=False)


def test_the_browser_is_told_to_ask_nobody_else(visit):
    page = visit()
    blocked = page.evaluate("fetch('http://192.0.2.1/').then(() => 'sent', error => String(error))")
    assert "Failed to fetch" in blocked
    links = page.evaluate("[...document.querySelectorAll('[src],link[href]')].map(e => e.src || e.href)")
    assert links and all(urlsplit(link).hostname in ("127.0.0.1", None) for link in links)
    assert page.locator("iframe").count() == 0


def test_the_server_asks_nobody_and_leaves_nothing(tmp_path, film, browser):
    proxy = {"HTTP_PROXY": "http://192.0.2.1:9", "http_proxy": "http://192.0.2.1:9"}  # as hospitals have them
    running = Server(tmp_path, **proxy).ready()
    page = browser.new_page()
    page.goto(running.url)
    give(page, film)
    page.get_by_role("tab", name="Two models").click()
    page.get_by_text("start the page with both").wait_for()
    page.close()
    hosts = {*running.hosts.read_text().split()}
    assert hosts <= {"127.0.0.1", "localhost", "::1", "None"}, hosts
    assert "login" not in running.said()
    assert running.stop() == 0
    assert running.said().endswith("the page is closed\n")
    assert [*running.temporary.iterdir()] == []


def test_a_port_that_is_taken_and_a_host_that_others_see(tmp_path, server):
    for name in ("other", "open"):
        (tmp_path / name).mkdir()
    taken = Server(tmp_path / "other", "--port", server.port)
    assert taken.process.wait(120) == 1
    assert f"127.0.0.1:{server.port} cannot be had" in taken.said() and "Traceback" not in taken.said()
    running = Server(tmp_path / "open", "--host", "0.0.0.0").ready()
    assert "--host 0.0.0.0: whoever reaches this machine can use the page, without a login" in running.said()
    assert running.stop(signal.SIGINT) == 130
    assert running.said().endswith("mxa app: stopped\n")
    assert [*running.temporary.iterdir()] == []


def test_a_model_that_is_not_there_and_seeds(tmp_path):
    for arguments, message in (
        (["nowhere/run"], "unknown model 'nowhere/run'"),
        ([f"{SHIPPED},other"], "one model at a time: separate models by spaces"),
    ):
        folder = tmp_path / str(len(message))
        folder.mkdir()
        wrong = Server(folder, *arguments)
        assert wrong.process.wait(120) == 1
        assert message in wrong.said() and wrong.said().count("\n") == 1, wrong.said()
