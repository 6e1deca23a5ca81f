"""The comparison's page in a real browser: Debian's chromium, which `make test` installs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CHROMIUM, CHROMIUM_FLAGS, small_config

from halfmeg.compare import compare
from halfmeg.report import write_comparison

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.filterwarnings("default"),  # of playwright itself
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, few_digits) -> Path:
    out = tmp_path_factory.mktemp("page") / "study"
    terms = small_config(batch_size=64)
    comparison = compare(
        ["cnn", "resnet", "resnet-linear"], few_digits, seeds=2, out=out, config=terms
    )
    return write_comparison(comparison, out, few_digits)[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_without_error_request_or_sideways_scroll(
    page_file: Path, browser: Any, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert told == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter(i => !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    page.close()


def test_tables_sort_by_mouse_and_by_keyboard(page_file: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    table = page.locator("table.sortable").first
    button = table.get_by_role("button", name="parameters")

    def column() -> list[int]:
        cells = table.locator("tbody tr td:nth-child(5)").all_inner_texts()
        return [int(cell.replace(",", "")) for cell in cells]

    button.click()
    assert column() == [1_020_490, 491_082, 81_578]
    assert table.locator("th[aria-sort=descending]").inner_text() == "parameters"
    button.press("Enter")
    assert column() == [81_578, 491_082, 1_020_490]
    names = table.get_by_role("button", name="network")
    names.click()
    names.click()
    assert table.locator("tbody td:first-child").all_inner_texts() == [
        "cnn", "resnet", "resnet-linear",
    ]  # fmt: skip
    page.close()


def test_the_keyboard_reaches_every_control(page_file: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.tagName + document.activeElement.textContent")
        )
    buttons = page.locator("th button").all_text_contents()
    assert {f"BUTTON{text}" for text in buttons} <= reached
    assert any(name.startswith("SUMMARY") for name in reached)
    page.close()
