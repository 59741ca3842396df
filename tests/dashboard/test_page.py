"""The page has the numbers of the run folders, needs nothing else, and draws them in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from folders import HOSTILE, make_run

from bouton.dashboard import write
from bouton.dashboard.collect import collect
from bouton.errors import DataError

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
PROBE = """
<script>
const box = document.querySelector('input[data-run="0"]');
const lines = () => document.querySelectorAll('figure.chart polyline').length;
const before = lines();
box.checked = false;
box.dispatchEvent(new Event("change"));
const without = lines();
const svg = document.querySelector("figure.chart svg");
const area = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent("pointermove", { clientX: area.left + area.width - 12, clientY: area.top + 50 }));
const slider = document.querySelector("figure.media input");
slider.value = 0;
slider.dispatchEvent(new Event("input"));
document.body.dataset.probe = JSON.stringify({
  before, without, tip: document.querySelector(".tip")?.innerText ?? "",
  shown: [...slider.parentElement.querySelectorAll("img")].map((image) => image.offsetParent !== null),
  loaded: [...document.images].every((image) => image.complete && image.naturalWidth > 0),
  wide: document.documentElement.scrollWidth > window.innerWidth,
});
</script></body>
"""


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return dict(json.loads(text))


@pytest.fixture(scope="module")
def page(sweep: Path) -> str:
    return write(sweep).read_text()


def test_the_series_are_those_of_the_tables_under_the_logged_names(page: str) -> None:
    runs = data_of(page)["runs"]
    assert [(run["arm"], run["seed"], run["status"]) for run in runs] == [
        ("none", 0, "finished"), ("none", 1, "finished"), ("presyn", 0, "finished"), ("presyn", 1, "unfinished"),
    ]  # fmt: skip
    steps, values = runs[1]["series"]["train/loss"]
    assert steps == [10, 20, 30, 40] and values == pytest.approx([5.8, 5.7, 5.6, 5.5])
    assert runs[1]["series"]["train/grad_norm"] == [[10, 20, 30], [0.2, 0.2, 0.2]]
    assert runs[2]["series"]["vitals/presyn/calcium"] == [[20], [0.5]]
    assert runs[0]["series"]["cost/tokens_per_second"] == [[10, 20], [1000, 1100]]
    titles = [section["title"] for section in data_of(page)["sections"]]
    assert titles == ["Losses", "Optimization", "Costs", "Vitals of presyn"]


def test_it_needs_no_other_file_and_no_network(page: str) -> None:
    assert not re.search(r'(src|href)\s*=\s*["\'](?!data:)', page)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", page)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place


def test_what_a_model_writes_is_text(page: str) -> None:
    assert HOSTILE not in page
    assert page.count(html.escape(HOSTILE)) == 8
    assert page.count("</script>") == 2


def test_final_metrics_and_costs_are_in_the_table(page: str) -> None:
    table = page[page.index("<table>") : page.index("</table>")]
    for text in ("bits per byte", "1,234", "5.0000", "6.0000", "1.00", "unfinished"):
        assert text in table
    assert "energy" not in table  # nobody has measured it


def test_pictures_are_embedded_evenly_and_the_last_one_always(sweep: Path, tmp_path: Path) -> None:
    def steps(count: int) -> list[str]:
        text = write(sweep / "presyn_seed0", out=tmp_path / "page.html", media=count).read_text()
        return re.findall(r'data-step="(\d+)"', text)

    assert steps(6) == ["10", "20", "30"]
    assert steps(2) == ["10", "30"]
    assert steps(1) == ["30"]
    assert steps(0) == []


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 3\nmechanism: {}\nmodel: {}\n")
    text = write(folder).read_text()
    assert "Nothing has been logged yet" in text and "unfinished" in text
    assert collect(folder)[0].samples == []
    with pytest.raises(DataError, match="there is no such folder"):
        write(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine (Debian: apt install chromium)")
@pytest.mark.parametrize("what", ["sweep", "run"])
def test_a_browser_draws_it_and_it_answers(sweep: Path, tmp_path: Path, what: str) -> None:
    text = write(sweep if what == "sweep" else sweep / "presyn_seed0", out=tmp_path / "page.html").read_text()
    probed = tmp_path / "probed.html"
    # The pictures of a sweep are folded.
    opened = text.replace("<details>", "<details open>")
    probed.write_text(PROBE.join(opened.rsplit("</body>", 1)))
    assert BROWSER is not None
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", "--enable-logging=stderr"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([BROWSER, *words, probed.as_uri()], capture_output=True, text=True, timeout=100)
    assert "Uncaught" not in done.stderr
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    probe = json.loads(html.unescape(found[1]))
    # Loss, learning rate, gradient norm, two costs of every run, and one vital of each with presyn.
    assert probe["before"] == (4 * 5 + 2 if what == "sweep" else 6)
    assert probe["without"] == (3 * 5 + 2 if what == "sweep" else 0)
    assert ("none, seed 1: 5.5" in probe["tip"]) == (what == "sweep")
    assert probe["shown"] == [True, False, False]
    assert probe["loaded"] and not probe["wide"]
    assert re.search(r'data-drawn="(22|6)"', done.stdout)


def test_an_error_of_a_crashed_run_is_in_the_table(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "grid" / "a", "none", 0, finished=False)
    (folder / "status.json").write_text('{"status": "crashed", "error": "loss is <nan>"}')
    assert 'title="loss is &lt;nan&gt;">crashed' in write(tmp_path / "grid").read_text()
