"""The page in a browser: sorted, filtered, slid over, pointed at; light, dark, and as wide as a phone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_page import BEST, ERRORS, EVIL, SEEDS, STEPS, folder, page

__all__ = ["folder", "page"]


def works(program: str) -> bool:
    """Whether it is here and whole."""
    return bool(shutil.which(program)) and subprocess.run([program, "--version"], capture_output=True).returncode == 0


CHROMIUM = next(filter(works, ("chromium", "chromium-browser", "google-chrome")), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install -y chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for all tests; root runs it without a sandbox."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=shutil.which(str(CHROMIUM)), args=["--no-sandbox"])


@pytest.fixture
def shown(browser: Any, page: str, tmp_path: Path) -> Iterator[Any]:
    """The page, 1200 pixels wide; nothing may be asked of a network, and nothing go wrong."""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(10_000)
    view, wrong = context.new_page(), []
    view.on("pageerror", lambda error: wrong.append(str(error)))
    view.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    view.on(
        "request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None
    )
    view.goto((tmp_path / "page.html").as_uri())
    yield view
    context.close()
    assert wrong == []


def column(view: Any, number: int) -> list[str]:
    """The table's texts of a column, of the rows that are shown."""
    return view.eval_on_selector_all(
        "#results tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{number}].textContent)"
    )


def brightness(view: Any, selector: str) -> float:
    """Of the middle of an element, as it is on the screen, in 0 to 255."""
    import io  # of the picture, in this helper alone

    from PIL import Image

    image = Image.open(io.BytesIO(view.locator(selector).first.screenshot())).convert("L")
    return float(image.getpixel((image.width // 2, image.height // 2)))  # type: ignore[arg-type]


def test_a_click_sorts_and_another_one_turns_it(shown: Any) -> None:
    errors = shown.get_by_role("button", name="error", exact=True)
    errors.click()
    values = [float(text.split()[0]) for text in column(shown, 4)]
    assert values == sorted(values)
    assert len(values) == len(STEPS) * len(ERRORS)
    errors.press("Enter")  # as from a keyboard
    assert [float(text.split()[0]) for text in column(shown, 4)] == sorted(values, reverse=True)
    assert shown.locator("th[aria-sort=descending]").count() == 1
    shown.get_by_role("button", name="sampler").click()
    assert column(shown, 0) == sorted(column(shown, 0), key=str.lower)


def test_the_table_is_filtered(shown: Any) -> None:
    shown.locator("[data-filter=steps]").select_option("10")
    assert column(shown, 2) == ["10"] * len(ERRORS)
    shown.locator("#find").fill("DIFFUSERS")
    assert column(shown, 0) == ["diffusers DDIM"]
    assert shown.locator("#shown").text_content() == "1 row"


def test_prompts_are_text(shown: Any) -> None:
    assert shown.title() == "fastsample bench"
    assert EVIL in shown.locator("#prompt").text_content()


def test_no_other_script_runs(browser: Any, page: str, tmp_path: Path) -> None:
    """Even where text were let through as it is: the page's policy knows its own script alone."""
    evil = "<script>document.title = 1</script><img src=x onerror='document.title = 2'>"
    (tmp_path / "page.html").write_text(page.replace("<main>", f"<main>{evil}"), encoding="utf-8")
    view = browser.new_page()
    view.goto((tmp_path / "page.html").as_uri())
    view.wait_for_timeout(50)
    assert view.title() == "fastsample bench"
    assert view.locator("#gallery .shot").count()
    view.close()


def test_the_slider_shows_the_pictures_of_its_steps(shown: Any) -> None:
    """A picture is as bright as its error: 0.4 of diffusers' DDIM at 5 steps, half of that at 10."""
    peer = ".name.peer + .shot"
    assert shown.locator("#gallery .shot").count() == 3 * (1 + len(ERRORS))
    assert brightness(shown, peer) == pytest.approx(0.4 * 255, abs=2)
    shown.locator("#steps").focus()
    shown.keyboard.press("ArrowRight")
    assert shown.locator("#steps-shown").text_content() == "10"
    assert brightness(shown, peer) == pytest.approx(0.2 * 255, abs=2)
    assert "error 0.202" in shown.locator(".name.peer small").text_content()
    shown.locator("#seed").select_option("all")
    assert shown.locator("#gallery .head").count() == 3 * len(SEEDS)
    shown.locator("#prompt").select_option("1")
    shown.locator("#seed").select_option("0")
    assert shown.locator(".cards .card").count() == 1 + len(ERRORS)  # a single column: side by side


def test_pointing_at_a_picture_shows_its_difference(shown: Any) -> None:
    """To a black reference that is the picture itself, four times as strong."""
    best = ".name.recommended + .shot"
    before = brightness(shown, best)
    shown.locator(best).first.hover()
    shown.wait_for_timeout(50)
    assert brightness(shown, best) == pytest.approx(4 * before, abs=8)
    shown.mouse.move(0, 0)
    assert brightness(shown, best) == pytest.approx(before, abs=2)
    shown.get_by_label("differences to the reference").check()
    assert brightness(shown, best) == pytest.approx(4 * before, abs=8)
    assert shown.locator(".name.recommended .who").text_content().startswith("recommended: ")
    assert BEST not in shown.locator("main").inner_text()  # a published name, not our id


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 375, 1200])
def test_the_page_is_never_wider_than_its_window(shown: Any, scheme: str, width: int) -> None:
    shown.emulate_media(color_scheme=scheme)
    shown.set_viewport_size({"width": width, "height": 700})
    shown.reload()
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = shown.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ".map(text => text.match(/\\d+/g).slice(0, 3).reduce((sum, one) => sum + Number(one), 0))"
    )
    assert (ink < paper) == (scheme == "light")
    assert abs(ink - paper) > 500
    colour = shown.locator(".chart svg text").first.evaluate("one => getComputedStyle(one).fill")
    assert colour == shown.evaluate("getComputedStyle(document.body).color")
    if width < 400:
        assert shown.locator(".cards .card").count() == 1 + len(ERRORS)  # one prompt at first


def test_everything_is_reached_by_keyboard(shown: Any) -> None:
    seen = set()
    for _ in range(40):
        shown.keyboard.press("Tab")
        seen.add(
            shown.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label') || ''")
        )
    assert {"prompt", "seed", "steps", "differences", "gallery", "Plot", "find", "Table of results"} <= seen
