"""The report: what is put into the page, and how the page behaves in a browser."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from PIL import Image

from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.datasets.shapes import LARGE, Shapes
from glimpse_env.rendering.drawing import mark_drawing
from glimpse_env.rollout.beam_search import Captioned
from train.benchmark.learning_curves import Curve, align, read_curve, read_curves
from train.benchmark.report.curve_panels import render_panels
from train.benchmark.report.page import Report, embed_json, render_page, short_names, write_report
from train.benchmark.report.scenes import caption_data, collect_scenes, data_uri, encode_glimpses, prefix_bleu
from train.benchmark.results import Benchmark, Result
from train.evaluate.attention_metrics import AttentionMetrics
from train.evaluate.evaluation import Evaluation
from train.evaluate.scoring import Interval, Scores

EVIL = "<script>document.title='owned'</script>"
GRID, L = LocationGrid((7, 7)), 49
METRICS = AttentionMetrics(0.5, 0.5, 1.0, 3.0, None)
SCORES = Scores([0.9, 0.8, 0.7, 0.6], 0.6, 1.0, 0.0, 1.0, 3)
REFERENCES = [
    ["a large red circle is above a small ring".split(), "a red circle is left of a ring".split(), [EVIL, "is", "it"]]
] * 3
CAPTIONS = [
    "a large red circle is above a ring".split(),
    ["a", "red", EVIL, "</script>", "left"],
    "a ring".split(),
]


def captioned(row: int, words: list[str], soft: bool, seed: int = 0) -> Captioned:
    rng = np.random.default_rng([seed, row])
    glimpses = np.zeros((len(words) + 1, L), np.float32)
    for step in range(len(words) + 1):
        glimpses[step, rng.choice(L, L if soft else 1, replace=False)] = rng.random() + 0.1
        if soft:
            glimpses[step] = rng.random(L) ** 4
    return Captioned(row, words, True, glimpses / glimpses.sum(1, keepdims=True), -1.0)


def result(bleu4: float) -> Result:
    interval = Interval(bleu4, bleu4 - 0.1, bleu4 + 0.05)
    return Result(
        scores=SCORES._replace(bleu=[0.9, 0.8, 0.7, bleu4], sentence_bleu=bleu4),
        attention_metrics=METRICS,
        bleu4=interval,
        iqm=interval,
        above=None,
        metrics={},
        coco={},
        seeds=["one"],
    )


def scene(row: int) -> Image.Image:
    noise = np.random.default_rng(row).integers(0, 256, (112, 112, 3))
    return mark_drawing(Image.fromarray(noise.astype(np.uint8)))


def evaluation(soft: bool, seed: int = 0) -> Evaluation:
    captions = [captioned(row, words, soft, seed) for row, words in enumerate(CAPTIONS)]
    names = ["first", f"{EVIL}.png", "third"]
    return Evaluation(SCORES, captions, REFERENCES, names, {}, METRICS, GRID)


def report(**changes) -> Report:
    evaluations = {"hard": evaluation(False), "soft": evaluation(True), f"runs/{EVIL}": evaluation(False, 1)}
    agents = {name: result(0.5 + 0.1 * number) for number, name in enumerate(evaluations)}
    benchmark = Benchmark("Glimpse/Shapes-v0", "test", {"decoders": ["greedy"], "seed": 0}, None, agents, {})
    curves = {"hard": [Curve("runs/a", np.array([0.0, 1e5, 2e5]), np.array([0.3, 0.6, 0.8]))]}
    return Report(benchmark, curves, evaluations, scene)._replace(**changes)


def embedded_data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


# --- what is put into the page ----------------------------------------------------------------------------------------


def test_nothing_from_outside_is_markup():
    page = render_page(report())
    assert "<script>document" not in page
    assert len(re.findall("<script", page)) == 2  # the data's and ours
    assert embedded_data(page)["scenes"][1]["captions"][0]["words"] == CAPTIONS[1]
    assert embedded_data(page)["scenes"][1]["name"] == f"{EVIL}.png"


def test_nothing_that_names_or_tells_an_agent_is_markup():
    original = report()
    agents = {EVIL: result(0.7)._replace(above=result(0.1).bleu4, seeds=[EVIL]), "soft": result(0.6)}
    options = {"decoders": [EVIL], "seed": EVIL}
    benchmark = Benchmark(EVIL, EVIL, options, EVIL, agents, {EVIL: f"ValueError: {EVIL}"})
    evaluations, curves = {EVIL: evaluation(False)}, {EVIL: original.curves["hard"]}
    page = render_page(original._replace(benchmark=benchmark, evaluations=evaluations, curves=curves))
    assert "<script>document" not in page
    assert len(re.findall("<script", page)) == 2
    assert page.count("&lt;script&gt;") >= 5


@pytest.mark.parametrize("text", ["</script><b>", "<!--", "a & b", "line\u2028break", "naïve – é"])
def test_embedded_json_is_the_same_value_without_signs_of_markup(text):
    embedded = embed_json({"text": text})
    assert not set("<>&\u2028") & set(embedded)
    assert json.loads(embedded) == {"text": text}


def test_the_page_asks_for_nothing_and_runs_our_script_alone():
    page = render_page(report())
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "url(" not in page
    assert " style=" not in page  # the policy blocks it
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in page


def test_the_table_is_that_of_the_results():
    page = render_page(report())
    rows = re.findall(r'<tr><th scope="row"[^>]*>(.*?)</th><td[^>]*>(\d+)</td>', page)
    assert [name for name, _ in rows] == ["script&gt;", "soft", "hard"]  # the best first, without folders
    assert "0.600" in page


def test_agents_lose_the_folders_of_their_names_where_they_stay_apart():
    names = ["soft", "runs/shapes-ppo-?", "/a/runs/x", "/b/runs/x", "hard (/old/benchmark)", "my_agents:Mine"]
    titles = ["soft", "shapes-ppo-?", "/a/runs/x", "/b/runs/x", "hard (benchmark)", "my_agents:Mine"]
    assert list(short_names(names).values()) == titles


def test_bleu_grows_to_that_of_the_whole_caption():
    grown = prefix_bleu(CAPTIONS, REFERENCES)
    smoothing = SmoothingFunction().method1
    for words, references, scores in zip(CAPTIONS, REFERENCES, grown, strict=True):
        expected = [
            sentence_bleu(references, words[:end], smoothing_function=smoothing) for end in range(1, len(words) + 1)
        ]
        assert scores == pytest.approx(expected, abs=1e-12)
    assert prefix_bleu([[], ["a"]], REFERENCES[:2])[0] == []
    assert prefix_bleu([[]], REFERENCES[:1]) == [[]]


def test_glimpses_are_a_location_or_per_cent_of_the_largest_weight():
    weights = np.zeros((2, L), np.float32)
    weights[0, 5] = 1
    weights[1, 3], weights[1, 4] = 0.8, 0.2
    hard, soft = encode_glimpses(Captioned(0, ["a"], True, weights, 0.0))
    assert hard == 5
    assert (soft[3], soft[4], sum(soft)) == (100, 25, 125)
    assert encode_glimpses(Captioned(0, [], True, np.full((1, L), 1 / L, np.float32), 0.0)) == [[100] * L]


def test_silent_steps_keep_words_glimpses_and_bleu_together():
    weights = np.eye(L, dtype=np.float32)[:5]
    data = caption_data(Captioned(0, ["a", "b"], True, weights, 0.0, silent_steps=(0, 2)), [0.1, 0.25])
    assert data["words"] == ["<blank>", "a", "<blank>", "b"]
    assert data["glimpses"] == [0, 1, 2, 3, 4]
    assert data["bleu"] == [0.0, 0.1, 0.1, 0.25]


def test_drawings_are_kept_as_they_are_and_photographs_made_small():
    def decoded(image: Image.Image) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(data_uri(image).split(",")[1])))

    assert np.array_equal(np.asarray(decoded(scene(0))), np.asarray(scene(0)))
    photograph = decoded(Image.new("RGB", (2000, 1000), "teal"))
    assert (photograph.format, photograph.size) == ("JPEG", (448, 224))
    larger = Shapes("val", LARGE).image(0)  # its noise would take 110 kB without loss
    quantized = decoded(larger)
    assert (quantized.format, quantized.size) == ("PNG", larger.size)
    pixels = np.asarray(larger, int)
    lost = np.abs(np.asarray(quantized.convert("RGB"), int) - pixels)
    assert lost.mean() < 6
    assert lost[pixels.max(2) - pixels.min(2) > 70].mean() < 6  # the few pixels that are no noise, too
    assert len(data_uri(larger)) < 50_000


def test_the_page_is_told_which_scenes_are_drawn():
    page = report(image=lambda row: scene(row) if row else Image.new("RGB", (90, 60)))
    titles = {name: name for name in page.evaluations}
    scenes = collect_scenes(page.evaluations, titles, page.image)["scenes"]
    assert [entry["crisp"] for entry in scenes] == [False, True, True]


def test_scenes_are_as_many_as_fit():
    evaluations = report().evaluations

    def scenes(**budget: int) -> list[dict]:
        return collect_scenes(evaluations, {name: name for name in evaluations}, scene, **budget)["scenes"]

    assert [entry["name"] for entry in scenes()] == evaluations["hard"].names
    assert len(scenes(budget=2 * max(len(json.dumps(entry)) for entry in scenes()))) == 2
    assert len(scenes(budget=1)) == 1


def write_metrics(run: Path, rows: list[tuple[float, float]]) -> None:
    run.mkdir(parents=True)
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "charts/steps", "val/bleu4", "charts/reward"])
        writer.writerows([number, *row, ""] for number, row in enumerate(rows))


def test_curves_are_those_of_run_directories(tmp_path):
    write_metrics(tmp_path / "one", [(0, 0.4), (1000, 0.8)])
    write_metrics(tmp_path / "short", [(0, 0.4)])
    curves = read_curves({"soft": ["soft"], "mine": [str(tmp_path / "one"), str(tmp_path / "short")]})
    assert [curve.bleu4.tolist() for curve in curves.pop("mine")] == [[0.4, 0.8]]
    assert curves == {}
    (tmp_path / "one" / "metrics.csv").write_text("charts/steps,val/bleu4\n0,many\n1,0.5\n")
    with pytest.raises(ValueError, match=r"one/metrics.csv' holds no learning curve .*'many'"):
        read_curve(tmp_path / "one")


def test_the_mean_curve_goes_as_far_as_all_runs_do():
    finished = Curve("a", np.array([0.0, 10, 20]), np.array([0.2, 0.4, 0.6]))
    stopped = Curve("b", np.array([0.0, 10]), np.array([0.4, 0.8]))
    steps, bleu4 = align([finished, stopped])
    assert steps.tolist() == [0, 10]
    assert bleu4.mean(0) == pytest.approx([0.3, 0.6])
    panel = render_panels({"<both>": [finished, stopped]}, {"<both>": "<both>"})
    assert (panel.count('class="range"'), panel.count('class="mean"'), panel.count("<both>")) == (1, 1, 0)
    assert "best 0.700, mean of 2 seeds" in panel


def test_curves_stay_inside_their_frame():
    panel = render_panels({"a": [Curve("a", np.array([0.0, 5e6]), np.array([0.0, 1.0]))]}, {})
    (width, height) = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', panel).groups())
    (points,) = re.findall(r'class="mean"><path d="M (\S+) (\S+) L (\S+) (\S+) *"', panel)
    left, bottom, right, top = map(float, points)
    assert 0 < left < right < width
    assert 0 < top < bottom < height
    assert ">5 M</text>" in panel
    assert panel == render_panels({"a": [Curve("a", np.array([0.0, 5e6]), np.array([0.0, 1.0]))]}, {})


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report") / "report.html", report()).as_uri()


@pytest.fixture
def page(browser, address):
    """The page, newly opened; the console must stay silent."""
    browser.get_log("browser")
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []


def find(page, selector):
    return page.find_elements("css selector", selector)


def words(page, panel: int = 0):
    return find(page, f".panel:nth-child({panel + 1}) .words button")


def current(page) -> list[str]:
    return [button.text for button in find(page, ".words [aria-current]")]


def press(page, *keys) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(*keys).perform()


def where(page, panel: int = 0) -> str:
    return find(page, ".view")[panel].get_attribute("aria-label")


def test_hovering_a_word_shows_the_tile_looked_at(page):
    from selenium.webdriver.common.action_chains import ActionChains

    order = [title.text for title in find(page, ".panel h3")]
    hard, soft = order.index("hard"), order.index("soft")
    ActionChains(page).move_to_element(words(page, hard)[3]).perform()
    assert current(page)[hard] == "circle"
    location = int(captioned(0, CAPTIONS[0], False).glimpses[3].argmax())
    assert where(page, hard) == f"hard looks row {location // 7 + 1}, column {location % 7 + 1}"
    spot = find(page, f".panel:nth-child({hard + 1}) .spot")[0]
    assert spot.value_of_css_property("border-top-style") == "solid"
    style = page.execute_script("return [arguments[0].style.left, arguments[0].style.top]", spot)
    assert [float(length.rstrip("%")) for length in style] == pytest.approx(
        [100 * (location % 7) / 7, 100 * (location // 7) / 7], abs=1e-3
    )
    heat = find(page, f".panel:nth-child({soft + 1}) canvas")
    assert len(heat) == 1
    clear = page.execute_script(
        "const pixels = arguments[0].getContext('2d').getImageData(0, 0, 7, 7).data;"
        "return [...Array(49).keys()].filter((i) => pixels[4 * i + 3] === 0);",
        heat[0],
    )
    assert int(captioned(0, CAPTIONS[0], True).glimpses[3].argmax()) in clear


def test_arrows_move_through_words_and_images(page):
    from selenium.webdriver.common.keys import Keys

    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert set(current(page)) == {"large"}
    assert find(page, "#place")[0].text == "Word 2 of 9"
    press(page, "n")
    assert find(page, "#scene option:checked")[0].text.endswith(f"{EVIL}.png")
    press(page, "p")
    words(page)[0].click()
    press(page, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert find(page, "#place")[0].text == "Word 1 of 3"
    press(page, Keys.ARROW_UP)
    assert find(page, "#place")[0].text == "Word 1 of 6"
    press(page, *[Keys.ARROW_RIGHT] * 9)
    assert set(current(page)) == {"end"}
    assert page.switch_to.active_element.get_attribute("aria-current") == "true"  # the focus went along


def test_bleu_grows_with_the_words(page):
    from selenium.webdriver.common.keys import Keys

    grown = prefix_bleu(CAPTIONS[:1], REFERENCES[:1])[0]
    for value in grown:
        assert find(page, ".now-bleu span")[0].text == f"BLEU {value:.3f}"
        press(page, Keys.ARROW_RIGHT)


def test_a_caption_that_is_a_script_stays_text(page):
    press(page, "n")
    assert words(page)[2].text == EVIL
    assert EVIL in find(page, "#references")[0].text
    assert find(page, "#chips button")[2].get_attribute("title") == f"runs/{EVIL}"
    assert page.title == "Glimpse/Shapes-v0, test, 3 images, greedy words"
    assert len(find(page, "script")) == 2


def test_agents_are_shown_as_asked(page):
    assert len(find(page, ".panel")) == 3
    chip = next(button for button in find(page, "#chips button") if button.text == "soft")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert "soft" not in [title.text for title in find(page, ".panel h3")]


def test_what_can_be_pressed_is_named_and_shows_its_focus(page):
    from selenium.webdriver.common.keys import Keys

    for button in find(page, "button, select"):
        assert button.accessible_name, button.get_attribute("outerHTML")
    press(page, Keys.TAB, Keys.TAB, Keys.TAB)
    focused = page.switch_to.active_element
    assert focused.tag_name in ("button", "select")
    assert focused.value_of_css_property("outline-style") == "solid"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_in_either_theme(page, theme):
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        press(page, "n")  # long words, too
        assert page.execute_script("return document.documentElement.scrollWidth") == 360
        colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        bright = np.mean([int(channel) for channel in re.findall(r"\d+", colour)[:3]])
        assert bright > 200 if theme == "light" else bright < 60
        assert len({round(panel.rect["y"]) for panel in find(page, ".panel")[:2]}) == 1  # two agents side by side
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_full_page_can_be_used_within_a_second(browser, tmp_path):
    """The one promise of time that is tested: the best of three, so that a busy machine does not break it."""
    captions = [captioned(row, CAPTIONS[0] * 2, True) for row in range(24)]
    full_evaluation = Evaluation(SCORES, captions, [REFERENCES[0] * 12] * 24, ["image"] * 24, {}, METRICS, GRID)
    evaluations = {f"agent {number}": full_evaluation for number in range(12)}
    benchmark = report().benchmark._replace(agents={name: result(0.5) for name in evaluations})
    full = report(benchmark=benchmark, curves={}, evaluations=evaluations)
    path = write_report(tmp_path / "report.html", full)
    assert 500_000 < path.stat().st_size < 5_000_000
    ready = []
    for _ in range(3):
        browser.get(path.as_uri())
        ready.append(int(find(browser, "html")[0].get_attribute("data-ready")))
    assert len(find(browser, ".panel")) == 4
    assert min(ready) < 1000
