"""The documentation: the site is built strictly, once, and read as a reader's browser would."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import unquote, urldefrag, urlsplit

import gymnasium as gym
import pytest
from PIL import Image

import agents
import glimpse_env
from tests.conftest import IDS, ROOT

for name in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(name, reason="the documentation is built with glimpse-env[docs]")


HEADINGS = [
    *("Description", "Action Space", "Observation Space", "Starting State", "Rewards", "Episode End", "Information"),
    *("Arguments", "Version History"),
]  # of Gymnasium's own pages, in their order
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
PHONE, DESK = 390, 1200


class Text(HTMLParser):
    """A page as what it links to and loads, its anchors, headings and tables."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: list[str] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.inside: str | None = None
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        self.anchors += [given[key] for key in ("id", "name") if key == "id" or tag == "a" if key in given]
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and LOADED[tag] in given and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(given[LOADED[tag]])
        if tag == "h2":
            self.inside = "heading"
            self.headings.append("")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.inside = "cell"
            self.tables[-1][-1].append("")
        elif tag == "br" and self.inside == "cell":
            self.tables[-1][-1][-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h2", "td", "th"):
            self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside == "heading":
            self.headings[-1] += data.removesuffix("¶")
        elif self.inside == "cell":
            self.tables[-1][-1][-1] += data


class Site(NamedTuple):
    folder: Path
    pages: dict[Path, Text]

    def page(self, name: str) -> Text:
        return self.pages[self.folder / name]


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return Site(folder, {page: Text(page) for page in folder.rglob("*.html")})


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the whole site ---------------------------------------------------------------------------------------------------


def test_every_link_leads_somewhere(site):
    broken = set()
    for page, text in site.pages.items():
        if page.name == "404.html":  # its links are those of a server's root
            continue
        for link in {*text.links, *text.loaded}:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme:
                continue
            target = (page.parent / unquote(address)).resolve() if address else page
            if not target.is_file() or (anchor and unquote(anchor) not in site.pages[target].anchors):
                broken.add((str(page.relative_to(site.folder)), link))
    assert not broken


def test_nothing_is_fetched_from_a_network(site):
    fetched = {
        link for text in site.pages.values() for link in text.loaded if urlsplit(link).scheme not in ("", "data")
    }
    assert not fetched
    for style in site.folder.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style


def test_no_two_headings_of_a_page_share_an_anchor(site):
    for page, text in site.pages.items():
        numbered = [one for one in text.anchors if re.fullmatch(r"(?!__).*_\d+", one) and one[:-2] in text.anchors]
        assert not numbered, (page, numbered)


def test_every_public_name_is_in_the_reference(site):
    anchors = {one for page, text in site.pages.items() if page.parent.name == "api" for one in text.anchors}
    public = {f"{of.__name__}.{name}" for of in (glimpse_env, agents) for name in of.__all__}
    assert public - anchors == {"glimpse_env.__version__"}


def test_readme_and_changelog_are_pages(site):
    assert "What is here" in site.page("index.html").headings
    assert any(heading.startswith(f"[{glimpse_env.__version__}]") for heading in site.page("changelog.html").headings)


# --- the pages of the ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env_id", "dataset"), IDS.items(), ids=IDS.values())
def test_pages_of_ids_have_gymnasiums_headings_in_its_order(site, env_id, dataset):
    page = site.page(f"environments/{dataset}.html")
    assert page.headings == HEADINGS
    assert f'gymnasium.make("glimpse_env:{env_id}"' in dict(page.tables[0])["import"]


def check_table(page: Text, call: str) -> None:
    told = dict(page.tables[0])
    made = eval(call, {"gymnasium": gym})
    env = made.unwrapped
    assert told["Action Space"].split(";")[0] == str(env.action_space)
    lines = dict(line.split(": ", 1) for line in told["Observation Space"].splitlines())
    assert lines == {name: str(space) for name, space in env.observation_space.items()}
    locations, features = env.observation_space["features"].shape
    rows, columns = env.captioner.encoder.grid.shape
    assert told["Sizes"] == (
        f"L = {locations} ({rows} × {columns}), D = {features}, H = {env.observation_space['hidden'].shape[0]}, "
        f"T = {env.task.max_caption_length}; {len(env.captioner.vocabulary):,} words"
    )
    softly = gym.make(made.spec, attention="soft")
    assert told["Action Space"].endswith(str(softly.action_space))


@pytest.mark.parametrize("dataset", ["shapes", "shapes-large"])
def test_tables_of_ids_are_the_spaces_that_are_made(site, dataset):
    page = site.page(f"environments/{dataset}.html")
    check_table(page, dict(page.tables[0])["import"])


@pytest.fixture
def few_photographs(tmp_path: Path) -> Path:
    """One photograph for each split, in Karpathy's layout."""
    (tmp_path / "Images").mkdir()
    images = []
    for number, split in enumerate(("train", "val", "test")):
        filename = f"{number}_photograph.jpg"
        Image.new("RGB", (64, 48), (40 * number, 90, 60)).save(tmp_path / "Images" / filename)
        images.append({"filename": filename, "split": split, "sentences": [{"raw": "a dog runs on the grass"}]})
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    return tmp_path


def test_the_table_of_flickr8k_is_the_spaces_that_are_made(site, few_photographs):
    pytest.importorskip("timm", reason="the CNN of Flickr8k needs glimpse-env[vision]")
    page = site.page("environments/flickr8k.html")
    check_table(page, dict(page.tables[0])["import"].replace("FOLDER", str(few_photographs)))


def test_a_heading_that_gymnasium_lacks_is_refused(hooks):
    with pytest.raises(Exception, match="has a heading 'Layouts'; expected Description, Action Space"):
        hooks.environment_page("shapes", "# Shapes\n\n## Layouts\n\nOf files.\n")


# --- equations --------------------------------------------------------------------------------------------------------

PLACE = re.compile(r'\[`(?P<name>[\w.]+)`\]\(\.\./(?P<file>[\w/]+\.py) "(?P<text>[^"]+)"\)')
LABEL = re.compile(r"eq\. \d+|§\d+(?:\.\d+)*|[A-Z]\w+(?: et al\.| and [A-Z]\w+)? \d{4}")


def rows_of_equations() -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The labels of each row of docs/equations.md, and the name, file and text of each place in it."""
    lines = (ROOT / "docs" / "equations.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [(one[0], PLACE.findall(one[-1])) for one in cells if LABEL.search(one[0])]


ROWS = rows_of_equations()


def named(source: str) -> set[str]:
    """The equations, sections and papers that a source text names, ranges of equations one by one."""
    flat = re.sub(r"\s+(?:#\s+)?", " ", source)
    labels = set(LABEL.findall(flat))
    for first, last in re.findall(r"eq\. (\d+)(?:–| and )(\d+)", flat):
        labels |= {f"eq. {number}" for number in range(int(first), int(last) + 1)}
    return labels


def test_every_equation_has_a_row():
    labels = {label for row, _ in ROWS for label in LABEL.findall(row)}
    assert labels >= {f"eq. {number}" for number in range(1, 15)} | {"§3.1.1", "§3.1.2", "§4.1", "§4.2.1"}
    assert sum(bool(places) for _, places in ROWS) == len(ROWS) - 2  # eq. 6 is two others, eq. 10 is never summed


@pytest.mark.parametrize(("label", "places"), ROWS, ids=[label for label, _ in ROWS])
def test_what_computes_an_equation_names_it(hooks, label, places):
    for name, file, _ in places:
        first, last = hooks.definition(file, name)
        source = "\n".join((ROOT / file).read_text().splitlines()[first - 1 : last])
        assert named(source) >= set(LABEL.findall(label)), f"{name} in {file} does not name {label}"


def test_the_site_shows_the_lines_of_today(site):
    wanted = [place for _, places in ROWS for place in places]
    shown = re.findall(
        r'href="source/([\w/]+\.py)\.html#L-(\d+)"[^>]*><code>([\w.]+)</code>, (\w+\.py):(\d+)</a>',
        (site.folder / "equations.html").read_text(),
    )
    assert [(name, file) for file, _, name, _, _ in shown] == [(name, file) for name, file, _ in wanted]
    for (file, anchor, _, base, number), (*_, text) in zip(shown, wanted, strict=True):
        assert (base, number) == (Path(file).name, anchor)
        assert text in (ROOT / file).read_text().splitlines()[int(number) - 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("CaptionDecoder.recurs", None, "defines no 'CaptionDecoder.recurs'"),
        ("recur", None, "defines no 'recur'"),
        ("CaptionDecoder.recur", "mixed = torch.tanh", "'CaptionDecoder.recur' in .* has no line with 'mixed"),
    ],
)
def test_a_link_to_what_is_gone_stops_the_build(hooks, name, text, message):
    with pytest.raises(hooks.PluginError, match=message):
        hooks.find_line("glimpse_env/models/decoder.py", name, text)


def test_links_in_code_are_left_alone(hooks):
    text = 'See `[x](../agents/base.py)` and\n\n```python\ncall["x"](../agents/base.py)\n```\n'
    assert hooks.with_links(text, "docs/page.md", "page.md") == text
    linked = hooks.with_links("[x](../agents/base.py#L-3)", "docs/page.md", "api/page.md")
    assert linked == "[x](../source/agents/base.py.md#L-3)"


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(browser, site):
    """Opens a page of the site from the file system; the console must stay silent."""

    def go(page: str, width: int = DESK):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((site.folder / page).as_uri())
        return browser

    browser.get_log("browser")
    yield go
    assert browser.get_log("browser") == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_search_works_without_a_server(opened):
    from selenium.webdriver.support.ui import WebDriverWait

    page = opened("index.html")
    page.find_element("css selector", ".md-search__input").send_keys("doubly stochastic")
    found = WebDriverWait(page, 30).until(lambda one: one.find_elements("css selector", ".md-search-result__link"))
    assert any("equations.html" in one.get_attribute("href") for one in found)


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone(opened, site):
    for path in sorted(site.pages):
        if path.relative_to(site.folder).parts[0] != "source" and path.name != "404.html":
            page = opened(str(path.relative_to(site.folder)), PHONE)
            assert page.execute_script("return document.scrollingElement.scrollWidth") <= PHONE, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_scheme_follows_the_system(opened, browser, scheme):
    from selenium.webdriver.support.ui import WebDriverWait

    preference = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
    page, wanted = opened("index.html"), {"light": "default", "dark": "slate"}[scheme]
    WebDriverWait(page, 30).until(lambda one: one.find_elements("css selector", f"body[data-md-color-scheme={wanted}]"))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
