"""Reports: self-contained, escaped, and seen by a real browser as they were meant."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from simflow_plugin.evaluation.report.grids import image_grid, png_bytes
from simflow_plugin.evaluation.report.html import (
    Cell,
    Collapsible,
    Figure,
    NumberTile,
    Plots,
    Section,
    Table,
    Text,
    Tiles,
    render_report,
    write_report,
)

VOID = {"meta", "img", "br", "hr", "link", "input"}


def sections():
    grid = png_bytes(image_grid(np.zeros((4, 16, 16, 3), dtype=np.uint8), 2))
    table = Table(
        ("metric", "ours"),
        (("PSNR", Cell("24.3", "23.9 to 24.6", "best")), ("FID", "—")),
        "Held out",
        ("n = 8",),
    )
    return [
        Section("", (Tiles((NumberTile("PSNR", "24.3 dB", "8 images"),)),)),
        Section("A & B", (Text("few samples", is_warning=True), table, Figure(grid, "grid <1>", "pixels"))),
        Section("Configuration", (Collapsible("Resolved configuration", "name: <script>alert(1)</script>"),)),
    ]


class Balance(HTMLParser):
    """Checks that every tag is closed by its own end tag."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_tags_are_balanced():
    parser = Balance()
    parser.feed(render_report("Run", sections()))
    assert parser.open == []


def test_text_is_escaped():
    page = render_report("<b>run</b>", sections(), "a < b")
    assert "<script" not in page
    assert "&lt;b&gt;run" in page
    assert "grid &lt;1&gt;" in page


def test_nothing_is_fetched():
    page = render_report("Run", sections())
    assert set(re.findall(r'(?:src|href)="([^",]*)', page)) == {"data:image/png;base64"}
    assert "url(" not in page
    assert "http" not in page


def test_report_replaces_an_older_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, "Run", sections())
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_prose_is_aligned_to_the_left_with_its_heading():
    rows = (("PSNR", Cell("24.3", "23 to 25"), Cell("", "8 images")), ("FID", "3", ""))
    page = render_report("Run", [Section("", (Table(("metric", "value", "measured on"), rows),))])
    assert '<th scope="col" class="prose">measured on' in page
    assert page.count('<td class="prose">') == 2
    assert '<th scope="col">value' in page


def test_small_plots_stack_and_share_a_legend():
    png = png_bytes(image_grid(np.zeros((1, 100, 60, 3), dtype=np.uint8), 1))
    plots = Plots((("NLL", png), ("L2", png)), (("first", "#1f5f8b"),), "losses")
    page = render_report("Run", [Section("", (plots,))])
    assert page.count('<img class="plot"') == 2
    assert 'alt="NLL"' in page
    assert 'style="background: #1f5f8b"></span>first' in page


@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_no_wider_than_its_window(tmp_path, browser, width):
    """Measured by the browser, in a frame of the width of a phone: what is wider scrolls by itself, behind a shadow."""
    wide = Table(tuple(f"column {i}" for i in range(20)), (tuple(str(10**9 + i) for i in range(20)),))
    png = png_bytes(image_grid(np.zeros((1, 100, 900, 3), dtype=np.uint8), 1))
    plots = Plots((("NLL", png), ("L2", png)))
    write_report(tmp_path / "report.html", "Run " + "x" * 200, [*sections(), Section("C", (wide, plots))])
    page = (tmp_path / "report.html").read_text()
    measure = "<script>document.title = 'width ' + document.documentElement.scrollWidth</script></body>"
    inner = html.escape(page.replace("</body>", measure))
    outer = (
        f'<!DOCTYPE html><body><iframe style="width:{width}px;height:2000px;border:0" srcdoc="{inner}"></iframe>'
        "<script>onload = () => {"
        "document.body.dataset.found = document.querySelector('iframe').contentDocument.title"
        "}</script></body>"
    )
    (tmp_path / "outer.html").write_text(outer)
    assert f'data-found="width {width}"' in browser(tmp_path / "outer.html")


def test_plots_are_shown_at_half_their_pixels():
    grid = png_bytes(image_grid(np.zeros((1, 100, 60, 3), dtype=np.uint8), 1))
    assert Figure(grid, "").display_size == (30, 50)
    assert Figure(grid, "", "pixels").display_size == (60, 100)


def test_browser_shows_table_and_images(tmp_path, browser):
    path = tmp_path / "report.html"
    write_report(path, "Run", sections())
    page = browser(path)
    assert '<td class="best">24.3' in page
    assert re.search(r'<img class="pixels"[^>]*width="98"', page)


def test_browser_screenshot_is_not_blank(tmp_path, browser):
    path = tmp_path / "report.html"
    write_report(path, "Run", sections())
    shot = np.asarray(Image.open(browser(path, screenshot=tmp_path / "shot.png")).convert("L"))
    assert shot.std() > 5
