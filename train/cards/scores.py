"""The shipped files, the evaluations in their cards, and the scores in card_scores.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from agents.loading import ASSETS, REWARD_TRAINED, find_agent
from glimpse_env.datasets import WORLDS, find_world
from glimpse_env.models.captioner import captioner_path
from glimpse_env.rollout.decode import Decoding
from train.cards.texts import AGENTS, CAPTIONERS, Text
from train.common.formatting import write_json

ROOT = Path(__file__).parents[2]
SCORES = Path(__file__).parent / "card_scores.json"
FOLDERS = {"captioner": ROOT / "glimpse_env" / "assets", "attention": ASSETS}
TEXTS = {"captioner": CAPTIONERS, "attention": AGENTS}

CardScores = dict[str, Any]  # by command, as ``card_scores.json`` has them


class Scoring(NamedTuple):
    """An evaluation of shipped files."""

    dataset: str
    split: str
    agent: str
    decode: Decoding

    @property
    def command(self) -> str:
        """The line for a shell."""
        env_id = find_world(self.dataset).env_id
        command = f"python -m train.evaluate --env {env_id} --split {self.split} --agent {self.agent}"
        return command if self.decode == "greedy" else f"{command} --decode {self.decode}"

    def digests(self) -> dict[str, str]:
        """SHA-256 of the agent's shipped files, by path in the repository."""
        files = [captioner_path(find_agent(self.agent, self.dataset).captioner or self.dataset)]
        if self.agent in ("soft", "hard", *REWARD_TRAINED):
            files.append(ASSETS / f"{self.dataset}-{self.agent}.safetensors")
        return {str(file.relative_to(ROOT)): digest(file) for file in files}


class ShippedFile(NamedTuple):
    """A shipped file."""

    path: Path
    kind: str  # captioner or attention
    text: Text  # for its card

    @property
    def dataset(self) -> str:
        """The short name of the dataset it was trained on."""
        return max((dataset for dataset in WORLDS if self.path.stem.startswith(dataset)), key=len)

    @property
    def scorings(self) -> list[Scoring]:
        """The evaluations in its card."""
        split = find_world(self.dataset).report_split
        return [Scoring(self.dataset, split, *play) for play in self.text.plays]

    @property
    def card(self) -> Path:
        """Its model card."""
        return self.path.with_suffix(".md")


def shipped_files() -> list[ShippedFile]:
    """All shipped files.

    Raises:
        ValueError: a file has no text, or a text no file.
    """
    files = []
    for kind, folder in FOLDERS.items():
        odd = {path.stem for path in folder.glob("*.safetensors")} ^ TEXTS[kind].keys()
        if odd:
            raise ValueError(
                f"{', '.join(sorted(odd))}: either a file in {folder} without a text in "
                "train/cards/texts.json, or a text without a file"
            )
        files += [ShippedFile(folder / f"{name}.safetensors", kind, text) for name, text in TEXTS[kind].items()]
    return files


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_scores() -> CardScores:
    """The scores in card_scores.json."""
    return json.loads(SCORES.read_text()) if SCORES.is_file() else {}


def write_scores(scores: CardScores) -> None:
    """Write card_scores.json."""
    write_json(SCORES, scores)
