"""MkDocs hooks: pages for linked source files, links to their lines, and the pages of the environments' ids.

- A link to a file of the checkout leads to a page that shows the file. If its text is a name in backquotes, other than
  the module's, it leads to the definition of that name; with a title, ``[`name`](../file.py "text")``, to the first
  line of the definition that contains the text, and the site prints the line number. An unknown name or text stops the
  build.
- ``environments/NAME.md`` has the sections that are specific to an id, under Gymnasium's headings; the shared sections
  come from the docstring of ``GlimpseEnv``, the spaces from the dataset's captioner.
"""

from __future__ import annotations

import ast
import inspect
import math
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
from pygments.lexers import TextLexer, find_lexer_class_for_filename

from glimpse_env.core.safetensors_files import read_tensors
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import find_world
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.spaces import action_space, observation_space
from glimpse_env.models.captioner import FORMAT, captioner_path, shipped_captioners
from glimpse_env.models.decoder import DecoderConfig

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}  # pages of files in the root
SOURCE = "source"  # folder of the pages that show other files
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

_FENCE = r"(?P<fence>^[ ]*(?P<ticks>```+)[^\n]*\n.*?^[ ]*(?P=ticks)[ ]*$)"
_LINK = r'(?P<text>!?\[(?:`[^`\n]*`|[^\[\]`])*\])\((?P<href>[^()\s]+)(?:\s+"(?P<title>[^"]*)")?\)'
_ATTRIBUTE = r'(?P<attribute>\b(?:src|href)=)"(?P<url>[^"]+)"'
_LINKS = re.compile(f"{_FENCE}|{_LINK}|(?P<code>`[^`]*`)|{_ATTRIBUTE}", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"\[`(?P<name>\w+(?:\.\w+)*)(?:\(\))?`\]")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README, changelog and a page for every file of the checkout that a page links to."""
    pending = [*ROOT_PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    known = set(pending)
    while pending:
        name = pending.pop()
        text = page_text(name)
        if not is_page(name):
            files.append(File.generated(config, page_of(name), content=text))
        new = {target for target in linked_files(text, name) if not is_page(target)} - known
        pending += sorted(new)
        known |= new
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Assemble the page of an id, and point links to files of the checkout to their pages."""
    uri = page.file.src_uri
    if uri.startswith("environments/"):
        markdown = environment_page(PurePosixPath(uri).stem, markdown)
    return with_links(markdown, origin(uri), uri)


# ---- links


def origin(uri: str) -> str:
    """The file of the checkout that a page shows."""
    for name, page in ROOT_PAGES.items():
        if uri == page:
            return name
    return uri.removeprefix(f"{SOURCE}/").removesuffix(".md") if uri.startswith(f"{SOURCE}/") else f"docs/{uri}"


def is_page(target: str) -> bool:
    """Whether MkDocs itself handles a file of the checkout: a file in ``docs`` that is not code."""
    return target.startswith("docs/") and not target.endswith(".py") and not (ROOT / target).is_dir()


def page_of(target: str) -> str:
    """The page of the site that shows a file of the checkout."""
    if is_page(target):
        return target.removeprefix("docs/")
    return ROOT_PAGES.get(target, f"{SOURCE}/{target}.md")


def has_links(name: str) -> bool:
    """Whether links in the page of a file are followed: in Markdown and lists of folders, not in code."""
    return name.endswith(".md") or (ROOT / name).is_dir()


def in_checkout(href: str, name: str) -> str | None:
    """The file or folder of the checkout that a link in the file ``name`` leads to, if any."""
    path = href.partition("#")[0]
    if not path or re.match(r"\w+:|/", path):
        return None
    target = posixpath.normpath(PurePosixPath(name).parent / path)
    return target if not target.startswith("..") and (ROOT / target).exists() else None


def linked_files(markdown: str, name: str) -> Iterator[str]:
    """Files and folders of the checkout that the text of the file ``name`` links to."""
    for match in _LINKS.finditer(markdown) if has_links(name) else ():
        target = in_checkout(match["href"] or match["url"] or "", name)
        if target is not None:
            yield target


def with_links(markdown: str, name: str, uri: str) -> str:
    """The text of the file ``name`` with its links rewritten for the page at ``uri``."""

    def rewrite(match: re.Match[str]) -> str:
        href = match["href"] or match["url"]
        target = None if href is None else in_checkout(href, name)
        if target is None:
            return match[0]
        anchor, text, path = href.partition("#")[2], match["text"], PurePosixPath(target)
        code = _NAME.fullmatch(text) if text and path.suffix == ".py" else None
        if code and code["name"] not in (path.stem, path.name, target):
            line = find_line(target, code["name"], match["title"])
            anchor = f"L-{line}"
            if match["title"] is not None:
                text = f"{text[:-1]}, {path.name}:{line}]"
        link = posixpath.relpath(page_of(target), posixpath.dirname(uri) or ".") + (f"#{anchor}" if anchor else "")
        if match["attribute"]:  # MkDocs does not change links of raw HTML, and writes pages as .html
            return f'{match["attribute"]}"{re.sub(r"[.]md(?=#|$)", ".html", link)}"'
        return f"{text}({link})"

    return _LINKS.sub(rewrite, markdown) if has_links(name) else markdown


# ---- the source


def definition(target: str, name: str) -> tuple[int, int]:
    """First and last line of the definition of ``name`` in a file, such as ``Class.method``.

    Raises:
        PluginError: there is no such definition.
    """
    body: list[ast.stmt] = ast.parse((ROOT / target).read_text()).body
    first, last = 0, 0
    for identifier in name.split("."):
        statement = next((statement for statement in body if identifier in _names(statement)), None)
        if statement is None:
            raise PluginError(f"{target} defines no {name!r}; mend the link that names it")
        first, last = statement.lineno, statement.end_lineno or statement.lineno
        body = statement.body if isinstance(statement, DEFINITIONS) else []
    return first, last


def _names(statement: ast.stmt) -> set[str]:
    """Names that a statement defines."""
    if isinstance(statement, DEFINITIONS):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def find_line(target: str, name: str, text: str | None = None) -> int:
    """The first line of a definition, or the first one in it that contains a text.

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


def page_text(target: str) -> str:
    """A file or folder of the checkout as a page: Markdown as it is, a folder as a list, other files as code."""
    path = ROOT / target
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".py", ".md") and file.stem != "__init__")
        rows = [f"- [`{file.name}`]({path.name}/{file.name}): {_first_line(file)}" for file in files]
        return f"{NOT_SEARCHED}# {target}/\n\n" + "\n".join(rows) + "\n"
    if path.suffix == ".md":
        return path.read_text()
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return f"{NOT_SEARCHED}# {target}\n\n{path.stat().st_size:,} bytes that are not text.\n"
    lexer = (find_lexer_class_for_filename(path.name) or TextLexer)()
    style = HtmlFormatter(linenos="inline", linespans="L", cssclass="highlight source", wrapcode=True)
    return f"{NOT_SEARCHED}# {target}\n\n{highlight(text, lexer, style)}"


def _first_line(path: Path) -> str:
    """The first line of a page or of a module's docstring."""
    text = path.read_text()
    text = text.lstrip("# ") if path.suffix == ".md" else ast.get_docstring(ast.parse(text)) or ""
    return text.partition("\n")[0]


# ---- the pages of the ids


def sections(text: str) -> tuple[str, dict[str, str]]:
    """The text before the first heading of the second level, and the text under each by heading."""
    lead, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    return lead.strip(), {head.strip(): body.strip() for head, _, body in (section.partition("\n") for section in rest)}


def environment_page(dataset: str, markdown: str) -> str:
    """The page of a dataset's id: sections of the docstring of ``GlimpseEnv``, each followed by the id's own text.

    Raises:
        PluginError: the id's text has a heading that the docstring lacks.
    """
    env_id = find_world(dataset).env_id
    summary, shared = sections(inspect.cleandoc(GlimpseEnv.__doc__ or ""))
    lead, specific = sections(markdown)
    unknown = sorted(set(specific) - set(shared))
    if unknown:
        raise PluginError(f"environments/{dataset}.md has a heading {unknown[0]!r}; expected {', '.join(shared)}")
    lead = re.sub(r"\A# .*\n?", "", lead).strip()
    has_picture = (ROOT / "docs" / "images" / f"{dataset}.gif").is_file()
    picture = f"![An episode of {env_id}](../images/{dataset}.gif){{ width=336 }}" if has_picture else ""
    blocks = [f"# {env_id}", summary, picture, summary_table(env_id, dataset), lead]
    blocks += [f"## {heading}\n\n{text}\n\n{specific.get(heading, '')}" for heading, text in shared.items()]
    return "\n\n".join(filter(None, blocks))


def summary_table(env_id: str, dataset: str) -> str:
    """The table that opens Gymnasium's pages: the spaces, and the call of ``gymnasium.make``."""
    arguments = "" if not find_world(dataset).needs_data else ', data_root="FOLDER"'
    rows = {"Action Space": "`Discrete(L)`", "Observation Space": "`Dict`, as below", "Sizes": "those of the captioner"}
    if dataset in shipped_captioners():
        rows = shipped_sizes(dataset)
    else:
        arguments += ', captioner="FILE"'
    rows["import"] = f'`gymnasium.make("glimpse_env:{env_id}"{arguments})`'
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows.items())])


def shipped_sizes(dataset: str) -> dict[str, str]:
    """Spaces and sizes of an environment with the dataset's shipped captioner."""
    metadata = read_tensors(captioner_path(dataset), FORMAT)[1]
    grid, width = metadata["encoder"]["grid"], metadata["encoder"]["feature_dim"]
    decoder, words = DecoderConfig(**metadata["decoder"]), Vocabulary(metadata["vocabulary"])
    captioner = SimpleNamespace(decoder=SimpleNamespace(config=decoder), vocabulary=words)
    features = SimpleNamespace(shape=(0, math.prod(grid), width), masks=None)
    assets = SimpleNamespace(features=features, captioner=captioner)
    task = cast(Any, SimpleNamespace(assets=assets, observe="features", attention="hard"))
    soft_task = cast(Any, SimpleNamespace(assets=assets, attention="soft"))
    spaces = observation_space(task).items()
    return {
        "Action Space": f'`{action_space(task)}`; with `attention="soft"` `{action_space(soft_task)}`',
        "Observation Space": "<br>".join(f"`{name}`: `{space}`" for name, space in spaces),
        "Sizes": f"L = {math.prod(grid)} ({' × '.join(map(str, grid))}), D = {width}, H = {decoder.hidden_dim}, "
        f"T = {find_world(dataset).longest}; {len(words):,} words",
    }
