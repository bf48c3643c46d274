"""Reports: self-contained, escaped, and seen by a real browser as they were meant."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest

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


def png(height=100, width=60):
    return png_bytes(image_grid(np.zeros((1, height, width, 3), dtype=np.uint8), 1))


def sections():
    grid = png(48, 98)
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


def test_prose_is_aligned_to_the_left_with_its_heading():
    rows = (("PSNR", Cell("24.3", "23 to 25"), Cell("", "8 images")), ("FID", "3", ""))
    page = render_report("Run", [Section("", (Table(("metric", "value", "measured on"), rows),))])
    assert '<th scope="col" class="prose">measured on' in page
    assert page.count('<td class="prose">') == 2
    assert '<th scope="col">value' in page


def test_small_plots_stack_and_share_a_legend():
    plots = Plots((("NLL", png()), ("L2", png())), (("first", "#1f5f8b"),), "losses")
    page = render_report("Run", [Section("", (plots,))])
    assert page.count('<img class="plot"') == 2
    assert 'alt="NLL"' in page
    assert 'style="background: #1f5f8b"></span>first' in page


@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_no_wider_than_its_window(tmp_path, browser, width):
    """Measured by the browser, in a frame of the width of a phone: what is wider scrolls by itself, behind a shadow."""
    wide = Table(tuple(f"column {i}" for i in range(20)), (tuple(str(10**9 + i) for i in range(20)),))
    plots = Plots((("NLL", png(width=900)), ("L2", png(width=900))))
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
    assert Figure(png(), "").display_size == (30, 50)
    assert Figure(png(), "", "pixels").display_size == (60, 100)


def test_browser_shows_table_and_images(tmp_path, browser):
    write_report(tmp_path / "report.html", "Run", sections())
    page = browser(tmp_path / "report.html")
    assert '<td class="best">24.3' in page
    assert re.search(r'<img class="pixels"[^>]*width="98"', page)
