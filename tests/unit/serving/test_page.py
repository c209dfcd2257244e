"""The page in a real browser: Chromium without a display, driven by Playwright; skipped where one is missing.

With OPENBLIP_SCREENSHOTS=FOLDER what the browser shows is kept there.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from judged_small import SAMPLES, judged_run
from serving_small import FolderIndex, StandIn, engine, png, predictors

from openblip.bootstrap.browse import Decisions
from openblip.bootstrap.policy import REASONS
from openblip.serving.app import Service
from openblip.serving.examples import draw_examples
from openblip.serving.limits import Limits
from openblip.serving.local import LocalEngine

PAGE = resources.files("openblip.serving") / "page"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# Without a browser -------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """All tags with their attributes, and what stands inside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    for tag, attributes in Tags(text).tags:
        assert tag != "style"
        assert tag != "script" or attributes["src"]
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    for name in ("index.html", "page.css", "page.js", "capfilt.js", "words.js"):
        assert "://" not in (PAGE / name).read_text(encoding="utf-8"), name


def test_both_languages_say_the_same_things() -> None:
    script = (PAGE / "words.js").read_text(encoding="utf-8")
    english, chinese = (set(re.findall(r"\b(\w+): \"", part)) for part in script.split("  zh: {"))
    assert english == chinese
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    used = set(re.findall(r'data-(?:word|label)="(\w+)"', html))
    for name in ("page.js", "capfilt.js"):
        script = (PAGE / name).read_text(encoding="utf-8")
        for call in re.findall(r"(?:word|step)\(([^()]+)", script):
            used |= set(re.findall(r'"(\w+)"', call)) & english
    assert used <= english
    assert english <= used | {"title"}, "words that nothing says"
    # The script puts a reason's words together from its name.
    reasons = {f"why_{reason.replace('-', '_')}" for reason in REASONS}
    assert reasons == {name for name in english if name.startswith("why_")}


# In a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def models() -> dict[str, Any]:
    """Small ones with random weights; with OPENBLIP_PAGE_MODELS=FOLDER,FOLDER real ones, for good screenshots."""
    if named := os.environ.get("OPENBLIP_PAGE_MODELS"):
        from openblip.tasks.load import load

        return {Path(place).parent.name: load(place, dtype="float32") for place in named.split(",")}
    return dict(predictors())


@contextmanager
def running(service: Service) -> Iterator[str]:
    """A service in a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(service.app, port=0, log_level="warning"))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://localhost:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with an index of a few images."""
    folder = tmp_path_factory.mktemp("indexed")
    made = models()
    index = (FolderIndex(folder), next(iter(made)))
    service = Service(LocalEngine(made, index=index, max_pixels=1_000_000), Limits(pixels=1_000_000))
    for number, drawn in enumerate(service.examples):
        (folder / f"{number}.png").write_bytes(drawn.png)
    with running(service) as address:
        yield address


@pytest.fixture
def page(browser: Any, where: str) -> Iterator[Any]:
    """The page, which must leave no error in the console: a breach of the policy would."""
    context = browser.new_context(locale="en-US", viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    errors: list[str] = []
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(where)
    opened.wait_for_selector("#examples button")
    yield opened
    context.close()
    # Refused requests are logged by the browser too; they are what some tests are about.
    assert not [error for error in errors if "status of 4" not in error], errors


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("OPENBLIP_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def until(page: Any, condition: str) -> None:
    """Wait for a condition; Playwright's own way needs what the policy forbids."""
    end = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def submit(page: Any, task: str) -> Any:
    card = page.locator(f'[data-task="{task}"]')
    card.locator("button[type=submit]").click()
    return card.locator(".result")


@pytest.mark.slow
def test_an_example_is_captioned_matched_asked_and_explained(page: Any) -> None:
    page.click("#examples button >> nth=1")
    page.locator("#stage img").wait_for()  # until it is visible
    submit(page, "caption").locator(".said").wait_for()
    figures = submit(page, "match").locator(".bar .figure")
    figures.first.wait_for()
    assert figures.count() == 3
    assert re.fullmatch(r"ITM [\d.]+% · ITC -?\d\.\d\d", figures.first.inner_text())
    submit(page, "explain").locator(".words button").first.wait_for()
    words = page.locator('[data-task="explain"] .words button')
    assert words.first.get_attribute("aria-pressed") == "true"
    assert page.locator("#heat").is_visible()
    words.nth(2).click()
    assert words.nth(2).get_attribute("aria-pressed") == "true"
    if page.locator('[data-task="answer"]').is_visible():
        submit(page, "answer").locator(".bar").first.wait_for()
    hits = submit(page, "search").locator("figure img")
    hits.first.wait_for()
    until(page, "[...document.querySelectorAll('.found img')].every((one) => one.naturalWidth > 0)")
    assert hits.count() == 6
    shot(page, "page")
    words.nth(2).click()
    assert not page.locator("#heat").is_visible(), "a word that is chosen again is let go"
    page.evaluate("for (const one of document.querySelectorAll('.found figure')) one.className = 'before'")
    page.click("#similar")
    page.locator(".found figure:not(.before) button:enabled").first.click()
    page.locator("#shown[alt^=number]").wait_for()


@pytest.mark.slow
def test_a_file_is_chosen_and_nucleus_sampling_controlled(page: Any) -> None:
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(3, side=300)})
    page.wait_for_selector("#stage:not([hidden])")
    form = page.locator('[data-task="caption"] form')
    assert not form.locator("[name=top_p]").is_visible()
    form.locator("[name=method]").select_option("nucleus")
    assert form.locator("[name=top_p]").is_visible()
    assert not form.locator("[name=beams]").is_visible()
    form.locator("[name=count]").fill("3")
    said = submit(page, "caption").locator(".said")
    said.first.wait_for()
    assert said.count() == 3


@pytest.mark.slow
def test_mistakes_are_shown_as_sentences(page: Any) -> None:
    alert = submit(page, "caption").locator("[role=alert]")
    assert alert.inner_text() == "Choose an image first."
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no image"})
    page.wait_for_selector("#image-error:not([hidden])")
    assert page.inner_text("#image-error") == "This is no image."
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(1, side=1200)})
    page.wait_for_selector("#stage:not([hidden])")
    submit(page, "caption")
    until(page, "document.querySelector('[data-task=caption] [role=alert]')?.textContent.includes('pixels')")
    shot(page, "mistake")


@pytest.mark.slow
def test_it_works_by_keyboard_alone(page: Any) -> None:
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(
            "document.activeElement.id || document.activeElement.name || document.activeElement.textContent.trim()"
            " || document.activeElement.getAttribute('aria-label')"
        ))  # fmt: skip
    assert {"language", "file", "method", "beams", "Write", "texts", "Compare", "similar", "Example 1"} <= reached
    page.focus("#examples button >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stage:not([hidden])")
    page.focus('[data-task="search"] [name=text]')
    page.keyboard.press("Enter")
    page.locator(".found figure").first.wait_for()


@pytest.mark.slow
def test_a_phone_shows_one_column_and_chinese(browser: Any, where: str) -> None:
    context = browser.new_context(locale="zh-CN", viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = context.new_page()
    page.goto(where)
    page.wait_for_selector("#examples button")
    assert page.inner_text('[data-task="caption"] h2') == "图像描述"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "it must not scroll sideways"
    page.click("#examples button >> nth=2")
    submit(page, "match").locator(".bar").first.wait_for()
    submit(page, "search").locator("figure").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shot(page, "phone")
    page.click("#language")
    assert page.inner_text('[data-task="caption"] h2') == "Caption"
    page.reload()
    page.wait_for_selector("#examples button")
    assert page.inner_text('[data-task="caption"] h2') == "Caption", "the choice is kept"
    context.close()


@pytest.mark.slow
def test_decisions_are_browsed_without_a_model_by_keyboard_in_both_languages(browser: Any, tmp_path: Path) -> None:
    images = [drawn.png for drawn in draw_examples()]
    service = Service(StandIn(models={}), decisions=Decisions(judged_run(tmp_path, images=images)))
    context = browser.new_context(locale="en-US", viewport={"width": 360, "height": 740})
    errors: list[str] = []
    with running(service) as address:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        samples = page.locator(".judged article")
        samples.first.wait_for()
        assert samples.count() == 12
        assert not page.locator("#drop").is_visible(), "there is no model to show an image to"
        assert f"{SAMPLES} samples" in page.inner_text("#capfilt-sum")
        until(page, "[...document.querySelectorAll('.judged img')].every((one) => one.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, "it must not scroll sideways"
        shot(page, "capfilt-phone")

        names = "[...document.querySelectorAll('.judged p')].map((one) => one.textContent).join(' ')"
        first = page.evaluate(names)
        page.focus(".pager [name=next]")
        page.keyboard.press("Enter")
        until(page, f"{names}.startsWith('012')")
        assert page.evaluate("document.activeElement.name") == "next", "the keyboard stays where it was"
        page.keyboard.press("Enter")
        until(page, f"{names}.startsWith('024')")
        assert page.locator(".pager [name=next]").is_disabled()
        for place in ("012", "000"):
            page.focus(".pager [name=previous]")
            page.keyboard.press("Enter")
            until(page, f"{names}.startsWith('{place}')")
        assert page.evaluate(names) == first

        form = page.locator('[data-task="capfilt"] form').first
        form.locator("[name=verdict]").select_option("dropped")
        form.locator("[name=origin]").select_option("web")
        form.locator("[name=reason]").select_option("unmatched")
        form.locator("[name=words]").fill("red")
        page.keyboard.press("Enter")
        until(page, "document.querySelectorAll('.judged article').length === 5")
        assert "dropped · from the web · ITM 10% · ITM below the threshold" in samples.first.inner_text()
        page.click("#language")
        assert "丢弃 · 来自网络 · ITM 10% · ITM 低于阈值" in samples.first.inner_text()
        form.locator("[name=words]").fill("nothing like this")
        page.keyboard.press("Enter")
        until(page, """document.querySelector('[data-task="capfilt"] .result p')?.innerText === '没有找到。'""")
        assert samples.count() == 0
    context.close()
    assert not errors


@pytest.mark.slow
def test_a_key_is_asked_for_where_one_is_needed(browser: Any) -> None:
    service = Service(engine(), keys=("secret",))
    with running(service) as address, browser.new_page() as page:
        page.goto(address)
        page.wait_for_selector("#key:not([hidden])")
        page.fill("#key input", "secret")
        page.click("#key button")
        page.wait_for_selector("#examples button")
        assert not page.locator("#key").is_visible()
