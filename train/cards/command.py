"""A model card beside every shipped file: what is in it, how it was made, and what it scores.

Facts come from where they are kept: sizes and remarks from the file, commands from ``make weights``, figures from
``train.evaluate``, which is asked again when a file has changed. What only people can say is in train.cards.texts.
"""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from agents.loading import ASSETS, IDS_OF, LEARNED, find_agent
from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.core.safetensors_files import read_metadata
from glimpse_env.models.captioner import captioner_path
from glimpse_env.rollout.decode import Decoding
from train.cards.lineage import ROOT, Step, line_of_descent, recipe
from train.cards.texts import AGENTS, BACKBONE_LICENCE, CAPTIONERS, DATA, LICENCE, LIMITS, WITH_CAPTIONER, Text
from train.common.formatting import markdown_table, write_json
from train.common.options import Compute, prepare
from train.evaluate import evaluation as evaluate

SCORES = Path(__file__).parent / "card_scores.json"
FOLDERS = {"captioner": ROOT / "glimpse_env" / "assets", "attention": ASSETS}
TEXTS = {"captioner": CAPTIONERS, "attention": AGENTS}
SPLITS = {"flickr8k": "val"}  # else test


@dataclass
class Options(Compute):
    """Write the model cards."""

    rescore: bool = False
    """Score every file again; otherwise those that have changed."""
    machine: str = "two virtual cores of an AMD EPYC (Zen 4)"
    """What it is scored on, in words."""
    out: Path | None = None
    """Folder for the cards, to look at; by default beside the files."""


class Shipped(NamedTuple):
    """A shipped file.

    Attributes:
        path: where it lies.
        kind: ``captioner`` or ``attention``.
        text: what people say of it.
    """

    path: Path
    kind: str
    text: Text

    @property
    def dataset(self) -> str:
        """The short name of the dataset it was trained on."""
        return max((one for one in DATA if self.path.stem.startswith(one)), key=len)

    @property
    def split(self) -> str:
        """The split it is scored on."""
        return SPLITS.get(self.dataset, "test")

    @property
    def card(self) -> Path:
        """Its model card."""
        return self.path.with_suffix(".md")


def shipped_files() -> list[Shipped]:
    """All shipped files.

    Raises:
        ValueError: a file has no text, or a text no file.
    """
    found = []
    for kind, folder in FOLDERS.items():
        names = {path.stem for path in folder.glob("*.safetensors")}
        if names != TEXTS[kind].keys():
            raise ValueError(
                f"{', '.join(sorted(names ^ TEXTS[kind].keys()))}: either a file in {folder} without a text in "
                "train/cards/texts.py, or a text without a file"
            )
        found += [Shipped(folder / f"{name}.safetensors", kind, text) for name, text in TEXTS[kind].items()]
    return found


# --- scores -----------------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def played(dataset: str, agent: str) -> dict[str, str]:
    """The shipped files that an agent plays with, by path in the repository, and their digests."""
    files = [captioner_path(find_agent(agent, dataset).captioner or dataset)]
    if agent in ("soft", "hard", *LEARNED):
        files.append(ASSETS / f"{dataset}-{agent}.safetensors")
    return {str(file.relative_to(ROOT)): digest(file) for file in files}


def scoring_command(dataset: str, split: str, agent: str, decode: Decoding) -> str:
    """What a score is of, as a person types it."""
    named = f"python -m train.evaluate --env {IDS_OF[dataset]} --split {split} --agent {agent}"
    return named if decode == "greedy" else f"{named} --decode {decode}"


Scores = dict[str, Any]  # by command, as ``card_scores.json`` holds them


def read_scores() -> Scores:
    """What was scored before."""
    held: Scores = json.loads(SCORES.read_text()) if SCORES.is_file() else {}
    return held


def is_stale(scores: Scores, dataset: str, split: str, agent: str, decode: Decoding) -> bool:
    """Whether a score is missing, or of other files than those that ship."""
    held = scores.get(scoring_command(dataset, split, agent, decode))
    return held is None or held["files"] != played(dataset, agent)


def score(options: Options, dataset: str, split: str, agent: str, decode: Decoding) -> Scores:
    """Score an agent as it ships."""
    asked = evaluate.Options(
        env=IDS_OF[dataset],
        split=split,
        agent=agent,
        decode=decode,
        seed=options.seed,
        device=options.device,
        data_root=options.data_root,
    )
    made = evaluate.evaluate(asked).scores
    return {
        "files": played(dataset, agent),
        "bleu": [round(value, 4) for value in made.bleu],
        "length_ratio": round(made.length_ratio, 3),
        "images": made.num_images,
        "scored": f"{date.today()}, {options.machine}",
    }


def update_scores(options: Options, files: list[Shipped]) -> Scores:
    """Score what is stale, or everything, and keep it."""
    before, scores = read_scores(), Scores()
    for file in files:
        for agent, decode in file.text.plays:
            key = (file.dataset, file.split, agent, decode)
            command = scoring_command(*key)
            if command in scores:
                continue
            if options.rescore or is_stale(before, *key):
                print(command)
                scores[command] = score(options, *key)
            else:
                scores[command] = before[command]
            write_json(SCORES, {**before, **scores})  # what is scored is kept if the next cannot be
    write_json(SCORES, scores)
    return scores


# --- the card ---------------------------------------------------------------------------------------------------------


def render(file: Shipped, steps: dict[str, Step], scores: Scores) -> str:
    """The card of a file."""
    metadata = read_metadata(file.path)
    words = len(metadata["vocabulary"] if "vocabulary" in metadata else _vocabulary(file))
    licence = [
        LICENCE[file.dataset],
        *([BACKBONE_LICENCE] if metadata.get("encoder", {}).get("weights") == "tuned" else []),
    ]
    limits = "\n".join(f"- {_filled(text.format(words=f'{words:,}'), '  ')}" for text in LIMITS[file.dataset])
    return "\n\n".join(
        [
            f"---\n{_front_matter(file, scores)}\n---",
            f"# {file.path.stem}, {_kind(file)}",
            _filled(file.text.about),
            _usage(file),
            "## Limits",
            *([WITH_CAPTIONER] if file.kind == "attention" else []),
            limits,
            f"## What is in it\n\n{_contents(file, metadata)}",
            f"## How it was made\n\n{_making(file, metadata, steps)}",
            f"## Results\n\n{_results(file, scores)}",
            f"## Licence\n\n{_filled(' '.join(licence))}\n",
        ]
    )


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _kind(file: Shipped) -> str:
    return "captioner" if file.kind == "captioner" else "attention"


def _front_matter(file: Shipped, scores: Scores) -> str:
    learned = file.kind == "attention" and file.path.stem.removeprefix(f"{file.dataset}-") in LEARNED
    results = [
        EvalResult(
            task_type="image-to-text",
            dataset_type=file.dataset,
            dataset_name=IDS_OF[file.dataset],
            dataset_split=file.split,
            metric_type="bleu",
            metric_name=f"BLEU-4, {agent}, {decode} words",
            metric_value=scores[scoring_command(file.dataset, file.split, agent, decode)]["bleu"][3],
        )
        for agent, decode in file.text.plays
    ]
    tags = ["image-captioning", "visual-attention", "gymnasium", "safetensors"]
    data = ModelCardData(
        language="en",
        license="mit",
        library_name="glimpse-env",
        pipeline_tag="reinforcement-learning" if learned else "image-to-text",
        tags=[*tags, *(["hard-attention", "reinforcement-learning"] if learned else [])],
        datasets=[file.dataset],
        metrics=["bleu"],
        model_name=f"{file.path.stem} ({_kind(file)})",
        eval_results=results,
    )
    return data.to_yaml()


def _usage(file: Shipped) -> str:
    name, folder = file.path.stem, file.path.parent.relative_to(ROOT)
    if file.kind == "captioner":
        lines = ["from glimpse_env.models.captioner import load_captioner", "", f'captioner = load_captioner("{name}")']
        after = f'`gym.make("{IDS_OF[file.dataset]}", captioner="{name}")` speaks with it.'
    else:
        lines = ["from agents import load_attention", "", f'attention = load_attention("{folder}/{name}.safetensors")']
        after = f"From a checkout; as an agent it is `--agent {name.removeprefix(f'{file.dataset}-')}` of the commands."
    return "\n".join(["```python", *lines, "```", "", after])


def _contents(file: Shipped, metadata: dict[str, Any]) -> str:
    rows = []
    if file.kind == "captioner":
        encoder, decoder = metadata["encoder"], metadata["decoder"]
        widths = [str(decoder[f"{part}_dim"]) for part in ("embed", "hidden", "context")]
        cnn = {"own": "all of it in this file", "tuned": "its last stage, fine-tuned, in this file"}[encoder["weights"]]
        rows += [
            ["CNN", f"`{encoder['backbone']}`, {cnn}"],
            ["image", f"{encoder['image_size']} × {encoder['image_size']} pixels"],
            ["locations", " × ".join(map(str, encoder["grid"]))],
            ["annotation vectors", f"{encoder['feature_dim']} values"],
            ["embedded words, LSTM, context", ", ".join(widths)],
            ["vocabulary", f"{decoder['vocab_size']:,} words, 4 special ones among them"],
        ]
    else:
        sizes = metadata["attention"]
        rows += [
            ["scores", "v · tanh(W_a a + W_h h), SAT eq. 4"],
            ["annotation vectors", f"{sizes['feature_dim']} values"],
            ["hidden state", f"{sizes['hidden_dim']} values"],
            ["where they meet", f"{sizes['attention_dim']} values"],
        ]
    with safe_open(file.path, framework="pt") as opened:
        count = sum(opened.get_tensor(name).numel() for name in opened.keys())  # noqa: SIM118 (not a mapping)
    rows += [
        ["weights", f"{count:,}, half precision"],
        ["file", f"{file.path.stat().st_size:,} bytes, safetensors, format `{metadata['format']}`"],
        ["SHA-256", f"`{digest(file.path)}`"],
    ]
    return markdown_table(["", ""], rows)


def _making(file: Shipped, metadata: dict[str, Any], steps: dict[str, Step]) -> str:
    chain, origin = line_of_descent(file.text.run, steps)
    noted = metadata["notes"]["trained_with"]
    kept = next(f"{name} {noted[name]:,}" for name in ("epoch", "update", "steps") if name in noted)
    kept = f"step {noted['steps']:,}" if "steps" in noted else kept
    captioner = captioner_path(_captioner(file))
    parts = [_filled(DATA[file.dataset])]
    if origin is not None:
        parts.append(f"On from [`{origin.stem}`]({_link(file, origin)}):")
    parts.append("\n".join(f"    {line}" for step in chain for line in _wrapped(step.command)))
    said = f"Seed {noted['seed']}; val chose the weights of {kept}."
    if file.text.time:
        said += f" It took {file.text.time} ([all times](../../docs/benchmark.md))."
    if file.kind == "attention":
        said += f" It belongs to the captioner [`{captioner.stem}`]({_link(file, captioner)})."
    parts.append(_filled(said))
    return "\n\n".join(parts)


def _captioner(file: Shipped) -> str:
    """The captioner an attention belongs to; a captioner itself."""
    if file.kind == "captioner":
        return file.path.stem
    return find_agent(file.path.stem.removeprefix(f"{file.dataset}-"), file.dataset).captioner or file.dataset


def _vocabulary(file: Shipped) -> list[str]:
    words: list[str] = read_metadata(captioner_path(_captioner(file)))["vocabulary"]
    return words


def _link(file: Shipped, other: Path) -> str:
    return os.path.relpath(other.with_suffix(".md"), file.path.parent)


def _wrapped(command: str) -> list[str]:
    """A command in lines; no option is parted from its value."""
    first, *parts = command.split(" --")
    lines = [first]
    for part in parts:
        if len(lines[-1]) + len(part) > 108:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" --{part}"
    return lines


def _results(file: Shipped, scores: Scores) -> str:
    rows, commands, scored = [], [], []
    for agent, decode in file.text.plays:
        command = scoring_command(file.dataset, file.split, agent, decode)
        held = scores[command]
        figures = [f"{value:.4f}" for value in held["bleu"]]
        rows.append([agent, decode, *figures, f"{held['length_ratio']:.2f}"])
        scored.append(held["scored"])
        commands.append(command)
    images = f"{held['images']:,} {'photographs' if file.dataset == 'flickr8k' else 'scenes'}"
    head = ["agent", "words", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "length"]
    told = (
        f"Corpus BLEU with brevity penalty on {file.split}, {images}, of the half-precision weights as they ship, seed "
        f"0; {' and '.join(dict.fromkeys(scored))}. [Intervals, other agents and seeds](../../docs/benchmark.md)."
    )
    shown = "\n".join(f"    {command}" for command in commands)
    return f"{_filled(told)}\n\n{markdown_table(head, rows)}\n\n{shown}"


def main(options: Options) -> None:
    """Score what has changed and write the cards."""
    prepare(options)
    files, steps = shipped_files(), recipe()
    scores = update_scores(options, files)
    for file in files:
        path = file.card if options.out is None else options.out / file.card.relative_to(ROOT)
        with atomic_path(path) as partial:
            partial.write_text(render(file, steps, scores), encoding="utf-8")
        print(path)
