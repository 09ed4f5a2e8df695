"""A page in Chromium: it draws everything, complains of nothing, asks for nothing, and fits a phone, a desk and the dark."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

import browser
import page_runs
import toy_runs
from weft.report import page
from weft.report.table import Table

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium here")]

TABLE = Table("First", ("a", "b"), (("x|y", "1"), ('"z"', "2")))
PROBE = """<script>
const copies = [];
if (navigator.clipboard) navigator.clipboard.writeText = () => Promise.reject(new Error("closed"));
document.execCommand = () => { copies.push(document.activeElement.value); return true; };
const measured = document.createElement("div");
measured.id = "measured";
measured.hidden = true;
const wait = setInterval(async () => {
  if (document.body.dataset.drawn !== "all") return;
  clearInterval(wait);
  for (const button of [...document.querySelectorAll("button")].slice(0, 3)) {
    button.click();
    await new Promise((done) => setTimeout(done, 20));
  }
  window.dispatchEvent(new Event("beforeprint"));
  const printed = document.querySelectorAll("section > details:not([open])").length;
  window.dispatchEvent(new Event("afterprint"));
  const closed = document.querySelectorAll("section > details:not([open])").length;
  const told = document.querySelector(".told").textContent;
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  measured.textContent = JSON.stringify({ copies, printed, closed, told, wide, evil: window.evil ?? null });
  document.body.append(measured);
}, 50);
</script></body>"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all plots, of four runs, whose names would do something if they were not text."""
    to = tmp_path_factory.mktemp("page")
    evil = "</script><img src=x onerror='window.evil=1'>"
    counts = {"clients": [evil, "b"], "classes": [evil, "c"], "rows": [[10, 2], [3, 40]]}
    with pytest.MonkeyPatch.context() as patch:
        toy_runs.light(patch)
        run = toy_runs.run(to, quiet=True)
    runs = [page_runs.like(run, to / f"{m}-{s}", m, s, 12, counts=counts) for m in ("fedit", "ffa-lora") for s in (0, 1)]
    labels = [f"{m} {evil} · seed {s}" for m in ("fedit", "ffa-lora") for s in (0, 1)]
    path = to / "report.html"
    page.write(path, runs, labels=labels, tables=[TABLE])
    return path


def probed(written: Path, to: Path, width: int) -> dict[str, Any]:
    """What a script says that is let into a copy of the page, which a page's own policy keeps out."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", written.read_text(encoding="utf-8"), count=1)
    before, after = text.rsplit("</body>", 1)  # Vega has the word in a string
    to.write_text(before + PROBE + after, encoding="utf-8")
    found = browser.opened(to, width)
    told = re.findall(r'<div id="measured"[^>]*>(.*?)</div>', found.dom, re.DOTALL)
    return dict(json.loads(html.unescape(told[-1])))


def test_it_draws_every_plot_without_a_word_and_asks_for_nothing(written: Path) -> None:
    found = browser.opened(written)
    assert found.body.get("data-errors") is None
    assert found.body["data-drawn"] == "all"
    places = re.findall(r'<div class="plot[^>]*>', found.dom)
    assert len(places) == 11
    assert all('data-drawn=""' in place for place in places)
    assert len(re.findall(r"<svg[^>]*class=\"marks\"", found.dom)) == 11
    assert found.console == []
    assert found.asked == []


def test_a_page_that_asks_for_something_is_noticed(written: Path, tmp_path: Path) -> None:
    """The page's own policy refuses it, and what looks for requests would see one."""
    kept, loose = tmp_path / "kept.html", tmp_path / "loose.html"
    text = written.read_text(encoding="utf-8").replace("<h2", '<img src="http://127.0.0.1:9/x.png"><h2', 1)
    kept.write_text(text, encoding="utf-8")
    loose.write_text(re.sub(r"<meta http-equiv[^>]*>", "", text, count=1), encoding="utf-8")
    refused, asked = browser.opened(kept), browser.opened(loose)
    assert refused.asked == []
    assert "Content Security Policy" in " ".join(refused.console)
    assert asked.asked == ["http://127.0.0.1:9/x.png"]


@pytest.mark.parametrize("width", [390, 1400])
def test_buttons_copy_and_print_opens_details_and_names_stay_text(written: Path, tmp_path: Path, width: int) -> None:
    found = probed(written, tmp_path / "probed.html", width)
    assert found["copies"] == [TABLE.markdown(), TABLE.latex(), TABLE.csv()]
    assert found["told"] == "Copied."
    assert (found["printed"], found["evil"]) == (0, None)
    assert found["closed"] >= 3
    assert found["wide"] <= 0


@pytest.mark.parametrize("width", [390, 1400])
def test_pictures_are_light_or_dark_as_wished_and_have_plots(written: Path, tmp_path: Path, width: int) -> None:
    light = browser.picture(written, tmp_path / "light.png", width, 6000)
    dark = browser.picture(written, tmp_path / "dark.png", width, 6000, dark=True)
    assert light.size == dark.size == (width, 6000)
    assert sum(light.getpixel((2, 2))) > 3 * 240
    assert sum(dark.getpixel((2, 2))) < 3 * 40
    for image in (light, dark):
        colours = {colour for _, colour in image.getcolors(1 << 24) or []}
        assert (0x00, 0x72, 0xB2) in colours
        assert (0xD5, 0x5E, 0x00) in colours
