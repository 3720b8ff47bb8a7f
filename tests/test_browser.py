"""The report and the audit page as a browser shows them: drawn, quiet, read on a phone, on paper, without scripts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import full_size
import pytest

from neuronforget import figures

CHROMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Nothing but the page itself may reach for the network, and no sandbox: containers forbid it.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
PAPER = (210 - 24) / 25.4 * 96  # pixels between the margins of A4
LEAST = 12  # pixels of a letter's size, but for exponents


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, CHROMES)), None)
    if found is None:
        pytest.skip(f"no Chromium: neither CHROME nor {', '.join(CHROMES)} on the PATH")
    with playwright.sync_playwright() as driver:
        try:
            made = driver.chromium.launch(executable_path=found, args=FLAGS)
        except playwright.Error as why:
            if "CHROME" in os.environ:  # asked for by name
                raise
            pytest.skip(f"{found} does not start: {str(why).splitlines()[0]}")
        yield made
        made.close()


@pytest.fixture(scope="module")
def pages(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return full_size.pages(tmp_path_factory.mktemp("pages"), width=60)


@pytest.fixture(scope="module", params=["report", "audit"])
def path(request: Any, pages: dict[str, Path]) -> Path:
    return pages[request.param]


def opened(browser: Any, path: Path, **settings: Any) -> tuple[Any, list[str]]:
    """A page, and what it asks for or complains of."""
    page = browser.new_context(**settings).new_page()
    noise: list[str] = []
    page.on("request", lambda request: noise.append(request.url))
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.goto(path.as_uri())
    return page, noise


def scrolled(page: Any) -> Any:
    """The page after its reader has come to every picture."""
    page.evaluate("""async () => {
        for (const box of document.querySelectorAll('.plot')) {
            box.scrollIntoView();
            while (!box.querySelector('.main-svg')) await new Promise(next => setTimeout(next, 10));
        }
    }""")
    return page


@pytest.fixture(scope="module")
def desk(browser: Any, path: Path) -> Iterator[tuple[Any, list[str]]]:
    page, noise = opened(browser, path)
    yield scrolled(page), noise
    page.context.close()


@pytest.fixture(scope="module")
def phone(browser: Any, path: Path) -> Iterator[Any]:
    page, _ = opened(browser, path, **PHONE)
    yield scrolled(page)
    page.context.close()


#: Of every picture: traces by type that it was given, and that it shows.
TRACES = """() => [...document.querySelectorAll('.plot')].map(box => {
    const given = JSON.parse(box.nextElementSibling.textContent).data.map(trace => trace.type);
    const count = type => given.filter(one => one === type).length;
    const shown = where => box.querySelectorAll(where).length;
    return [[count('scatter'), count('bar'), count('heatmap')],
            [shown('.scatterlayer .trace'), shown('.barlayer .trace'), shown('.heatmaplayer image')]];
})"""


def check_drawn(page: Any, noise: list[str], path: Path) -> None:
    drawn = page.evaluate(TRACES)
    assert len(drawn) == path.read_text().count('class="plot"') > 5
    assert all(given == shown and sum(given) for given, shown in drawn), drawn
    assert noise == [path.as_uri()]
    took = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    print(f"{path.name}: load event after {took:.0f} ms, {path.stat().st_size / 1e6:.1f} MB")


def test_every_picture_is_drawn_and_nothing_is_asked_of_any_host(desk: Any, path: Path) -> None:
    check_drawn(*desk, path)


def test_so_it_is_at_32_layers_of_14336_neurons(browser: Any, tmp_path: Path) -> None:
    path = full_size.pages(tmp_path)["report"]
    page, noise = opened(browser, path)
    check_drawn(scrolled(page), noise, path)
    page.context.close()


def test_a_figure_that_is_written_alone_asks_for_nothing_either(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "figure.html"
    figures.dots(full_size.results()).write_html(path)
    page, noise = opened(browser, path)
    page.wait_for_selector(".scatterlayer .trace")
    assert noise == [path.as_uri()]


def test_the_tool_bar_shares_nothing(desk: Any) -> None:
    page, _ = desk
    tools = page.eval_on_selector_all(".modebar-btn", "all => all.map(button => button.dataset.title)")
    assert "Zoom" in tools and not {tool for tool in tools if "cloud" in tool.lower() or "studio" in tool.lower()}
    assert "Produced with Plotly" not in " ".join(tools)


#: Of every picture: do buttons of its tool bar lie on its legend, or on the words above it?
COVERED = """() => [...document.querySelectorAll('.plot')].map(box => {
    const places = (where, of) => [...of.querySelectorAll(where)].map(one => one.getBoundingClientRect());
    const words = [...places('.legendtoggle', box), ...places('figcaption', box.closest('figure'))];
    return places('.modebar-btn', box).some(bar => words.some(word =>
        bar.left < word.right && word.left < bar.right && bar.top < word.bottom && word.top < bar.bottom));
})"""


@pytest.mark.parametrize("width", [400, 1280])
def test_the_tool_bar_lies_on_no_words_and_can_be_used(browser: Any, path: Path, width: int) -> None:
    page, _ = opened(browser, path, viewport={"width": width, "height": 844})
    scrolled(page)
    assert page.locator(".modebar-btn").count() and not any(page.evaluate(COVERED))
    box = page.locator(".plot").last
    box.hover()
    box.locator(".modebar-btn[data-val=pan]").click()
    assert box.evaluate("box => box._fullLayout.dragmode") == "pan"
    page.context.close()


def test_a_screen_reader_is_told_what_each_picture_shows(desk: Any) -> None:
    page, _ = desk
    titles = page.locator("h3[id]").all_inner_texts()
    assert titles and all(page.get_by_role("img", name=f"{title}. ").count() for title in titles)
    assert page.locator("figure").count() == page.locator(".plot").count() == len(titles)


def test_without_scripts_captions_and_tables_stand_in_for_pictures(browser: Any, path: Path) -> None:
    page, _ = opened(browser, path, java_script_enabled=False)
    for what in ("figcaption", "details table", "details td >> nth=0"):
        found = page.locator(what).all()
        assert found and all(one.is_visible() for one in found), what
    assert not any(one.is_visible() for one in page.locator(".plot").all())
    assert page.locator("noscript p").is_visible()


def test_on_a_phone_nothing_sticks_out_and_letters_can_be_read(phone: Any) -> None:
    page = phone
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    wide = "all => all.map(box => box.getBoundingClientRect().right)"
    assert max(page.eval_on_selector_all(".scroll, .wide, figure, .card, nav", wide)) <= 390
    sizes = page.evaluate("""() => {
        const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), sizes = {};
        while (words.nextNode()) {
            const holder = words.currentNode.parentElement;
            if (words.currentNode.data.trim() && !holder.closest('script, style, noscript, tspan[style*="70%"]'))
                sizes[parseFloat(getComputedStyle(holder).fontSize)] = words.currentNode.data.trim().slice(0, 40);
        }
        return sizes;
    }""")
    assert min(map(float, sizes)) >= LEAST, sizes


#: Of every picture: words on its axes that stick out of it, and words of its scale that lie on one another.
SPOILT = """() => [...document.querySelectorAll('.plot')].flatMap(box => {
    const all = box.getBoundingClientRect(), of = where => [...box.querySelectorAll(where)];
    const out = of('.xtitle, .ytitle, .cbtitle').filter(one => {
        const place = one.getBoundingClientRect();
        return place.left < all.left - 1 || place.right > all.right + 1 || place.bottom > all.bottom + 1;
    });
    const words = of('.cbaxis text').map(one => [one, one.getBoundingClientRect()]);
    words.sort((a, b) => a[1].left - b[1].left);
    return [...out, ...words.filter(([, place], i) => i && words[i - 1][1].right > place.left).map(([one]) => one)];
}).map(one => one.textContent)"""


def test_at_full_size_the_words_of_a_picture_fit_a_phone(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(browser, full_size.pages(tmp_path)["report"], **PHONE)
    scrolled(page)
    assert page.locator(".cbaxis text").count() and page.evaluate(SPOILT) == []
    page.context.close()


def test_without_scripts_a_value_and_its_interval_stay_on_one_line(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = opened(browser, pages["report"], java_script_enabled=False, **PHONE)
    cell = page.locator("details td", has_text="[").first
    box = cell.bounding_box()
    assert box and box["height"] < 40, cell.inner_text()
    page.context.close()


def test_on_a_phone_a_finger_scrolls_and_tables_open(phone: Any) -> None:
    page = phone
    modes = page.eval_on_selector_all(".plot", "all => all.map(box => box._fullLayout.dragmode)")
    assert set(modes) == {False} and page.locator(".modebar-btn").count() == 0
    table = page.locator("details table").first
    assert not table.is_visible()
    page.locator("summary").first.tap()
    assert table.is_visible()


def printed(page: Any) -> tuple[bytes, list[float]]:
    """The page on A4, and how wide its pictures are there (pixels)."""
    page.evaluate("""() => addEventListener('beforeprint', () => {
        window.printed = [...document.querySelectorAll('.plot')].map(box => box.querySelector('.main-svg').clientWidth);
    })""")
    return page.pdf(format="A4"), page.evaluate("window.printed")


def test_on_paper_every_picture_fits_and_on_the_screen_it_is_wide_again(desk: Any) -> None:
    page, _ = desk
    pdf, widths = printed(page)
    assert len(widths) == page.locator(".plot").count() and all(0 < width <= PAPER for width in widths)
    assert pdf.count(b"/Subtype /Image") >= page.locator(".heatmaplayer image").count()
    page.wait_for_function("[...document.querySelectorAll('.plot')].every(box => box._fullLayout.width > 800)")


def test_pictures_that_nobody_has_scrolled_to_are_printed_too(browser: Any, pages: dict[str, Path]) -> None:
    page, _ = opened(browser, pages["audit"])
    assert page.locator(".plot:not(.js-plotly-plot)").count() > 0
    assert all(width > 0 for width in printed(page)[1])


#: Of a committed picture: words that stick out of it.
CUT = """() => {
    const all = document.querySelector('svg').getBoundingClientRect();
    return [...document.querySelectorAll('svg text')].filter(word => {
        const box = word.getBoundingClientRect();
        return box.left < all.left - 1 || box.right > all.right + 1 || box.bottom > all.bottom + 1;
    }).map(word => word.textContent);
}"""


def test_no_words_of_the_documentation_s_pictures_are_cut(browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 2000})
    pictures = sorted((Path(__file__).parent.parent / "docs").glob("*.svg"))
    cut = {}
    for path in pictures:
        page.set_content(path.read_text(encoding="utf-8"))
        cut[path.name] = page.evaluate(CUT)
    page.close()
    assert len(pictures) > 15 and not {name: words for name, words in cut.items() if words}
