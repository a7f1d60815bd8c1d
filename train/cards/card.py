"""The text of a model card: facts from the file, its trainings and its scores, and the texts of train.cards.texts."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from agents.loading import REWARD_TRAINED, find_agent
from glimpse_env.core.safetensors_files import read_metadata
from glimpse_env.datasets import find_world
from glimpse_env.models.captioner import captioner_path
from train.cards.lineage import Training, lineage
from train.cards.scores import ROOT, CardScores, ShippedFile, digest
from train.cards.texts import BACKBONE_LICENCE, WITH_CAPTIONER
from train.common.formatting import markdown_table


def render_card(file: ShippedFile, trainings: dict[str, Training], scores: CardScores) -> str:
    """The card of a file as Markdown with front matter."""
    metadata = read_metadata(file.path)
    captioner = file.path  # of an attention the one it belongs to
    if file.kind == "attention":
        captioner = captioner_path(find_agent(_agent(file), file.dataset).captioner or file.dataset)
    words = len(read_metadata(captioner)["vocabulary"])
    licence = [find_world(file.dataset).licence]
    if metadata.get("encoder", {}).get("weights") == "tuned":
        licence.append(BACKBONE_LICENCE)
    limits = "\n".join(f"- {_fill(text.format(words=f'{words:,}'), '  ')}" for text in find_world(file.dataset).limits)
    return "\n\n".join(
        [
            f"---\n{_front_matter(file, scores)}\n---",
            f"# {file.path.stem}, {file.kind}",
            _fill(file.text.about),
            _usage(file),
            "## Limits",
            *([WITH_CAPTIONER] if file.kind == "attention" else []),
            limits,
            f"## What is in it\n\n{_contents(file, metadata)}",
            f"## How it was made\n\n{_training(file, metadata['notes']['trained_with'], captioner, trainings)}",
            f"## Results\n\n{_results(file, scores)}",
            f"## Licence\n\n{_fill(' '.join(licence))}\n",
        ]
    )


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _agent(file: ShippedFile) -> str:
    return file.path.stem.removeprefix(f"{file.dataset}-")


def _front_matter(file: ShippedFile, scores: CardScores) -> str:
    from_reward = file.kind == "attention" and _agent(file) in REWARD_TRAINED
    results = [
        EvalResult(
            task_type="image-to-text",
            dataset_type=file.dataset,
            dataset_name=find_world(file.dataset).env_id,
            dataset_split=scoring.split,
            metric_type="bleu",
            metric_name=f"BLEU-4, {scoring.agent}, {scoring.decode} words",
            metric_value=scores[scoring.command]["bleu"][3],
        )
        for scoring in file.scorings
    ]
    tags = ["image-captioning", "visual-attention", "gymnasium", "safetensors"]
    data = ModelCardData(
        language="en",
        license="mit",
        library_name="glimpse-env",
        pipeline_tag="reinforcement-learning" if from_reward else "image-to-text",
        tags=[*tags, *(["hard-attention", "reinforcement-learning"] if from_reward else [])],
        datasets=[file.dataset],
        metrics=["bleu"],
        model_name=f"{file.path.stem} ({file.kind})",
        eval_results=results,
    )
    return data.to_yaml()


def _usage(file: ShippedFile) -> str:
    name, folder = file.path.stem, file.path.parent.relative_to(ROOT)
    if file.kind == "captioner":
        lines = ["from glimpse_env.models.captioner import load_captioner", "", f'captioner = load_captioner("{name}")']
        note = f'`gym.make("{find_world(file.dataset).env_id}", captioner="{name}")` speaks with it.'
    else:
        lines = ["from agents import load_attention", "", f'attention = load_attention("{folder}/{name}.safetensors")']
        note = f"From a checkout; as an agent it is `--agent {_agent(file)}` of the commands."
    return "\n".join(["```python", *lines, "```", "", note])


def _contents(file: ShippedFile, metadata: dict[str, Any]) -> str:
    if file.kind == "captioner":
        encoder, decoder = metadata["encoder"], metadata["decoder"]
        widths = [str(decoder[f"{layer}_dim"]) for layer in ("embed", "hidden", "context")]
        size = encoder["image_size"]
        cnn = {"own": "all of it in this file", "tuned": "its last stage, fine-tuned, in this file"}[encoder["weights"]]
        rows = [
            ["CNN", f"`{encoder['backbone']}`, {cnn}"],
            ["image", "{} × {} pixels".format(*(size if isinstance(size, list) else (size, size)))],
            ["locations", " × ".join(map(str, encoder["grid"]))],
            ["annotation vectors", f"{encoder['feature_dim']} values"],
            ["embedded words, LSTM, context", ", ".join(widths)],
            ["vocabulary", f"{decoder['vocab_size']:,} words, 4 special ones among them"],
        ]
    else:
        sizes = metadata["attention"]
        rows = [
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


def _training(file: ShippedFile, notes: dict[str, Any], captioner: Path, trainings: dict[str, Training]) -> str:
    steps, origin = lineage(file.text.run, trainings)
    unit = next(name for name in ("steps", "epoch", "update") if name in notes)
    paragraphs = [_fill(find_world(file.dataset).training_data)]
    if origin is not None:
        paragraphs.append(f"On from {_link(file, origin)}:")
    paragraphs.append("\n".join(f"    {line}" for step in steps for line in _wrap(step.command)))
    closing = f"Seed {notes['seed']}; val chose the weights of {unit.removesuffix('s')} {notes[unit]:,}."
    if file.text.time:
        closing += f" It took {file.text.time} ([all times](../../docs/benchmark.md))."
    if file.kind == "attention":
        closing += f" It belongs to the captioner {_link(file, captioner)}."
    return "\n\n".join([*paragraphs, _fill(closing)])


def _link(file: ShippedFile, target: Path) -> str:
    """A link from the card of ``file`` to that of ``target``."""
    return f"[`{target.stem}`]({os.path.relpath(target.with_suffix('.md'), file.path.parent)})"


def _wrap(command: str) -> list[str]:
    """A command in lines; an option and its value are on one line."""
    first, *options = command.split(" --")
    lines = [first]
    for option in options:
        if len(lines[-1]) + len(option) > 108:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" --{option}"
    return lines


def _results(file: ShippedFile, scores: CardScores) -> str:
    rows = []
    for scoring in file.scorings:
        figures = scores[scoring.command]
        bleu = [f"{value:.4f}" for value in figures["bleu"]]
        rows.append([scoring.agent, scoring.decode, *bleu, f"{figures['length_ratio']:.2f}"])
    dates = dict.fromkeys(scores[scoring.command]["scored"] for scoring in file.scorings)
    images = f"{figures['images']:,} {find_world(file.dataset).recipe}"
    head = ["agent", "words", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "length"]
    summary = (
        f"Corpus BLEU with brevity penalty on {file.scorings[0].split}, {images}, of the half-precision weights as "
        f"they ship, seed 0; {' and '.join(dates)}. [Intervals, other agents and seeds](../../docs/benchmark.md)."
    )
    commands = "\n".join(f"    {scoring.command}" for scoring in file.scorings)
    return f"{_fill(summary)}\n\n{markdown_table(head, rows)}\n\n{commands}"
