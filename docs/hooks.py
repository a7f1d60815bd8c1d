"""What the site shows beyond what is written: the pages of the ids, and lines of the source behind links.

MkDocs calls it. It reads the checkout, the environments' docstring and the sizes of their spaces, and writes nothing
into the checkout.

- A link to a file of the checkout leads to a page of the site that shows the file. If its text is a name in backquotes,
  other than the module's, it leads to the line where that is defined; a title, ``[`name`](../file.py "text")``, means
  the first line in the definition that holds the text, and the site prints its number. A name or text that is not there
  stops the build.
- ``environments/NAME.md`` holds what is particular to an id, under Gymnasium's headings; what all ids share comes from
  the docstring of ``GlimpseEnv``, the spaces from a captioner of the dataset.
"""

from __future__ import annotations

import ast
import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, cast

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

from glimpse_env.core.safetensors_files import read_tensors
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import WORLDS, longest_caption
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.spaces import action_space, observation_space
from glimpse_env.models.captioner import FORMAT, captioner_path, shipped_captioners
from glimpse_env.models.decoder import DecoderConfig
from glimpse_env.registration import IDS

ROOT = Path(__file__).resolve().parent.parent
PLACES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}  # where the site shows what lies outside docs
SOURCE = "source"  # folder of the pages that show other files
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

_FENCE = r"(?P<fence>^[ ]*(?P<ticks>```+)[^\n]*\n.*?^[ ]*(?P=ticks)[ ]*$)"
_LINK = r'(?P<text>!?\[(?:`[^`\n]*`|[^\[\]`])*\])\((?P<href>[^()\s]+)(?:\s+"(?P<title>[^"]*)")?\)'
_ATTRIBUTE = r'(?P<attribute>\b(?:src|href)=)"(?P<url>[^"]+)"'
_LINKS = re.compile(f"{_FENCE}|{_LINK}|(?P<code>`[^`]*`)|{_ATTRIBUTE}", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"\[`(?P<name>\w+(?:\.\w+)*)(?:\(\))?`\]")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README and changelog, and a page for every file of the checkout that a page links to."""
    waiting = [*PLACES, *(f"docs/{one.src_uri}" for one in files.documentation_pages())]
    known = set(waiting)
    while waiting:
        name = waiting.pop()
        text = shown(name)
        if not is_page(name):
            files.append(File.generated(config, page_of(name), content=text))
        new = {target for target in linked_files(text, name) if not is_page(target)} - known
        waiting += sorted(new)
        known |= new
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the page of an id together, and let links to files of the checkout lead to their pages."""
    uri = page.file.src_uri
    if uri.startswith("environments/"):
        markdown = environment_page(PurePosixPath(uri).stem, markdown)
    return with_links(markdown, origin(uri), uri)


# ---- links


def origin(uri: str) -> str:
    """The file of the checkout that a page of the site was made from."""
    for name, place in PLACES.items():
        if uri == place:
            return name
    return uri.removeprefix(f"{SOURCE}/").removesuffix(".md") if uri.startswith(f"{SOURCE}/") else f"docs/{uri}"


def is_page(target: str) -> bool:
    """Whether a file of the checkout is one that MkDocs takes as it is: of ``docs``, but no code."""
    return target.startswith("docs/") and not target.endswith(".py") and not (ROOT / target).is_dir()


def page_of(target: str) -> str:
    """The page of the site that shows a file of the checkout."""
    if is_page(target):
        return target.removeprefix("docs/")
    return PLACES.get(target, f"{SOURCE}/{target}.md")


def has_links(name: str) -> bool:
    """Whether a file or folder of the checkout is shown with links: Markdown and lists are, code is not."""
    return name.endswith(".md") or (ROOT / name).is_dir()


def in_checkout(href: str, name: str) -> str | None:
    """The file or folder of the checkout that a link in a file means; None if it means anything else."""
    path = href.partition("#")[0]
    if not path or re.match(r"\w+:|/", path):
        return None
    target = posixpath.normpath(PurePosixPath(name).parent / path)
    return target if not target.startswith("..") and (ROOT / target).exists() else None


def linked_files(markdown: str, name: str) -> Iterator[str]:
    """Files and folders of the checkout that a text of the file ``name`` links to."""
    for found in _LINKS.finditer(markdown) if has_links(name) else ():
        target = in_checkout(found["href"] or found["url"] or "", name)
        if target is not None:
            yield target


def with_links(markdown: str, name: str, uri: str) -> str:
    """A text of the file ``name`` of the checkout, with its links as a page of the site at ``uri`` needs them."""

    def led(found: re.Match[str]) -> str:
        href = found["href"] or found["url"]
        target = None if href is None else in_checkout(href, name)
        if target is None:
            return found[0]
        anchor, text = href.partition("#")[2], found["text"]
        of = _NAME.fullmatch(text) if text and target.endswith(".py") else None
        if of and of["name"] not in (PurePosixPath(target).stem, PurePosixPath(target).name, target):
            line = find_line(target, of["name"], found["title"])
            anchor = f"L-{line}"
            if found["title"] is not None:
                text = f"{text[:-1]}, {PurePosixPath(target).name}:{line}]"
        place = posixpath.relpath(page_of(target), posixpath.dirname(uri) or ".") + (f"#{anchor}" if anchor else "")
        if found["attribute"]:  # raw HTML is left as it is by MkDocs, which writes pages as .html
            return f'{found["attribute"]}"{re.sub(r"[.]md(?=#|$)", ".html", place)}"'
        return f"{text}({place})"

    return _LINKS.sub(led, markdown) if has_links(name) else markdown


# ---- the source


def definition(target: str, name: str) -> tuple[int, int]:
    """First and last line of what a file of the checkout calls ``name``, such as ``Class.method``.

    Raises:
        PluginError: there is no such definition.
    """
    body: list[ast.stmt] = ast.parse((ROOT / target).read_text()).body
    first, last = 0, 0
    for part in name.split("."):
        found = next((one for one in body if part in _names(one)), None)
        if found is None:
            raise PluginError(f"{target} defines no {name!r}; mend the link that names it")
        first, last = found.lineno, found.end_lineno or found.lineno
        body = found.body if isinstance(found, DEFINITIONS) else []
    return first, last


def _names(statement: ast.stmt) -> set[str]:
    """What a statement defines."""
    if isinstance(statement, DEFINITIONS):
        return {statement.name}
    if isinstance(statement, ast.Assign):
        return {one.id for one in statement.targets if isinstance(one, ast.Name)}
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return {statement.target.id}
    return set()


def find_line(target: str, name: str, text: str | None = None) -> int:
    """The line of a definition, or the first one in it that holds a text.

    Raises:
        PluginError: there is no such definition, or the text is not in it.
    """
    first, last = definition(target, name)
    if text is None:
        return first
    lines = (ROOT / target).read_text().splitlines()[first - 1 : last]
    for number, line in enumerate(lines, first):
        if text in line:
            return number
    raise PluginError(f"{name!r} in {target} has no line with {text!r}; mend the link that names it")


def shown(target: str) -> str:
    """A file or folder of the checkout as a page: Markdown as it is, a folder as a list, anything else as code."""
    path = ROOT / target
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.suffix in (".py", ".md") and one.stem != "__init__")
        rows = [f"- [`{one.name}`]({path.name}/{one.name}): {_first_line(one)}" for one in files]
        return f"{UNSEARCHED}# {target}/\n\n" + "\n".join(rows) + "\n"
    if path.suffix == ".md":
        return path.read_text()
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return f"{UNSEARCHED}# {target}\n\n{path.stat().st_size:,} bytes that are not text.\n"
    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    style = HtmlFormatter(linenos="inline", linespans="L", cssclass="highlight source", wrapcode=True)
    return f"{UNSEARCHED}# {target}\n\n{highlight(text, lexer, style)}"


def _first_line(path: Path) -> str:
    """What a module or a page says first of itself."""
    text = path.read_text()
    told = text.lstrip("# ") if path.suffix == ".md" else ast.get_docstring(ast.parse(text)) or ""
    return told.partition("\n")[0]


# ---- the pages of the ids


def sections(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first heading of the second level, and what stands under each."""
    lead, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    return lead.strip(), {part.partition("\n")[0].strip(): part.partition("\n")[2].strip() for part in rest}


def environment_page(dataset: str, particular: str) -> str:
    """The page of a dataset's id: the docstring of ``GlimpseEnv``, and under its headings what is particular to the id.

    Raises:
        PluginError: the particulars have a heading that the docstring lacks.
    """
    env_id = next(name for name, of in IDS.items() if of == dataset)
    summary, shared = sections(inspect.cleandoc(GlimpseEnv.__doc__ or ""))
    lead, own = sections(particular)
    unknown = sorted(set(own) - set(shared))
    if unknown:
        raise PluginError(f"environments/{dataset}.md has a heading {unknown[0]!r}; expected {', '.join(shared)}")
    lead = re.sub(r"\A# .*\n?", "", lead).strip()
    picture = f"![An episode of {env_id}](../images/{dataset}.gif){{ width=336 }}"
    there = (ROOT / "docs" / "images" / f"{dataset}.gif").is_file()
    parts = [f"# {env_id}", summary, picture if there else "", summary_table(env_id, dataset), lead]
    parts += [f"## {heading}\n\n{text}\n\n{own.get(heading, '')}" for heading, text in shared.items()]
    return "\n\n".join(part for part in parts if part)


def summary_table(env_id: str, dataset: str) -> str:
    """What Gymnasium's pages open with: the spaces, and how the environment is made."""
    arguments = "" if dataset in WORLDS else ', data_root="FOLDER"'
    rows = {"Action Space": "`Discrete(L)`", "Observation Space": "`Dict`, as below", "Sizes": "those of the captioner"}
    if dataset in shipped_captioners():
        rows = shipped_sizes(dataset)
    else:
        arguments += ', captioner="FILE"'
    rows["import"] = f'`gymnasium.make("glimpse_env:{env_id}"{arguments})`'
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows.items())])


def shipped_sizes(dataset: str) -> dict[str, str]:
    """Spaces and sizes that a dataset's own captioner gives its environment."""
    told = read_tensors(captioner_path(dataset), FORMAT)[1]
    (rows, columns), width = told["encoder"]["grid"], told["encoder"]["feature_dim"]
    decoder, words = DecoderConfig(**told["decoder"]), Vocabulary(told["vocabulary"])
    captioner = SimpleNamespace(decoder=SimpleNamespace(config=decoder), vocabulary=words)
    features = SimpleNamespace(shape=(0, rows * columns, width))
    task = cast(Any, SimpleNamespace(features=features, captioner=captioner, observe="features", attention="hard"))
    softly = cast(Any, SimpleNamespace(features=features, attention="soft"))
    spaces = observation_space(task).items()
    return {
        "Action Space": f'`{action_space(task)}`; with `attention="soft"` `{action_space(softly)}`',
        "Observation Space": "<br>".join(f"`{name}`: `{space}`" for name, space in spaces),
        "Sizes": f"L = {rows * columns} ({rows} × {columns}), D = {width}, H = {decoder.hidden_dim}, "
        f"T = {longest_caption(dataset)}; {len(words):,} words",
    }
