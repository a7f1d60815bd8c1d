"""Metrics of where an agent attends: grounding, empty glimpses, entropy, locations and agreement with soft attention.

A glimpse is the location with the largest weight of a step, the first of equals; of soft attention, too. So equal
weights everywhere count as the first location.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agents.attention import load_attention
from agents.attention_agents import AttentionAgent, SoftAttentionAgent
from agents.base import Agent
from agents.loading import shipped_attention
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import GroundedDataset, find_world
from glimpse_env.envs.base import GlimpseBase
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner
from glimpse_env.rollout.beam_search import Captioned
from glimpse_env.rollout.decode import BATCH
from glimpse_env.rollout.dynamics import CaptionDynamics


class AttentionMetrics(NamedTuple):
    """Where an agent attended in a set of captions.

    Attributes:
        grounding: of ``grounding``; None without ground truth or without content words.
        empty: of ``empty_glimpses``; None without ground truth.
        entropy: mean per step, in nats: of α where the agent has one, else of the weights of its action; None of an
            agent that chooses locations without α.
        locations: of ``distinct_locations``.
        agreement: share of glimpses at the location where soft attention, in the same state, has its largest weight;
            None without a soft attention.
    """

    grounding: float | None
    empty: float | None
    entropy: float | None
    locations: float
    agreement: float | None

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.3f}" for name, value in self._asdict().items() if value is not None)


def glimpse_locations(caption: Captioned) -> npt.NDArray[np.int64]:
    """Location of each step's glimpse, (steps,), int64."""
    return caption.glimpses.argmax(1)


def grounding(captions: Sequence[Captioned], dataset: GroundedDataset) -> float | None:
    """Share of content words whose object had been glimpsed before the word.

    A word is grounded when the glimpse of its step, or an earlier one, is at an object that the word describes. So a
    word that describes nothing in the scene never is. None without content words.
    """
    grounded = []
    for caption in captions:
        locations, glimpses = dataset.word_locations(caption.row), glimpse_locations(caption)
        for step, word in enumerate(caption.step_words):
            if word in dataset.content_words:
                grounded.append(bool(np.isin(glimpses[: step + 1], locations.get(word, ())).any()))
    return float(np.mean(grounded)) if grounded else None


def empty_glimpses(captions: Sequence[Captioned], dataset: GroundedDataset) -> float:
    """Share of glimpses, those for ``<end>`` included, at locations that show no object."""
    empty = [~np.isin(glimpse_locations(caption), dataset.object_locations(caption.row)) for caption in captions]
    return float(np.concatenate(empty).mean())


def distinct_locations(captions: Sequence[Captioned]) -> float:
    """Mean number of different locations glimpsed in a caption."""
    return float(np.mean([len(np.unique(glimpse_locations(caption))) for caption in captions]))


def weights_entropy(weights: Tensor) -> Tensor:
    """Entropy in nats, (…,), float64, of distributions (…, L)."""
    return torch.special.entr(weights.double()).sum(-1)


class ReplayedStep(NamedTuple):
    """One step of up to B captions that are replayed."""

    observation: dict[str, npt.NDArray[Any]]  # of the agent before the step, with image rows
    alive: npt.NDArray[np.bool_]  # (B,), which captions have such a step; the others' entries mean nothing
    weights: npt.NDArray[np.float32]  # (B, L), of the locations attended
    logits: Tensor  # (B, V), float32, of the words after that glimpse; overwritten by the next step


def replay(
    captioner: Captioner,
    features: FeatureTable,
    captions: Sequence[Captioned],
    attention: str,
    *,
    max_caption_length: int = 20,
    batch: int = BATCH,
    **options: Any,
) -> Iterator[ReplayedStep]:
    """Run the decoder along captions again, with their glimpses and their words, however they were decoded.

    Args:
        captioner: whose decoder made them.
        features: annotations of the images.
        captions: with their glimpses.
        attention: ``hard`` or ``soft``, the kind of action they were made with.
        max_caption_length: T they were made with.
        batch: captions at a time.
        options: ``device`` and ``dtype`` as ``decode`` takes them.

    Raises:
        ValueError: a caption has another number of glimpses than of steps, or more than T.
    """
    for caption in captions:
        if len(caption.glimpses) != len(caption.step_words) or len(caption.glimpses) > max_caption_length:
            raise ValueError(
                f"the caption of row {caption.row} has {len(caption.glimpses)} glimpses and {len(caption.words)} words"
                f"{' and <end>' if caption.ended else ''}; expected as many, and at most {max_caption_length}"
            )
    size = max(min(batch, len(captions)), 1)
    options |= {"num_episodes": size, "attention": attention, "max_caption_length": max_caption_length}
    dynamics = CaptionDynamics(captioner, features, references=None, reward=None, **options)
    for start in range(0, len(captions), size):
        rows = [caption.row for caption in captions[start : start + size]]
        weights, words, alive = _pad(captions[start : start + size], size, dynamics.num_locations, captioner.vocabulary)
        dynamics.begin(np.arange(len(rows)), rows)
        for step in range(len(words)):
            observation = dynamics.observation("index")
            logits = dynamics.attend(weights[step].argmax(1) if attention == "hard" else weights[step])
            yield ReplayedStep(observation, alive[step], weights[step], logits)
            dynamics.append_words(torch.from_numpy(words[step]))


def _pad(
    captions: Sequence[Captioned], size: int, num_locations: int, vocabulary: Vocabulary
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Weights (T, B, L), word ids (T, B) and which captions have a step (T, B), with B = ``size``."""
    missing = size - len(captions)
    glimpses = [torch.tensor(caption.glimpses) for caption in captions] + [torch.empty(0, num_locations)] * missing
    ids = [vocabulary.encode(caption.step_words) for caption in captions] + [[]] * missing
    words = pad_sequence([torch.tensor(row, dtype=torch.int64) for row in ids], padding_value=vocabulary.pad).numpy()
    lengths = np.array([len(row) for row in ids])
    return pad_sequence(glimpses).numpy(), words, np.arange(len(words))[:, None] < lengths


def soft_reference(env: GlimpseBase) -> SoftAttentionAgent | None:
    """The soft attention that is shipped for an environment's dataset, if it is made for captioners of such sizes."""
    try:
        attention = load_attention(shipped_attention("soft", env.dataset.name))
    except FileNotFoundError:
        return None
    sizes, decoder = attention.config, env.captioner.decoder.config
    if (sizes.feature_dim, sizes.hidden_dim) != (decoder.feature_dim, decoder.hidden_dim):
        return None
    return SoftAttentionAgent(attention, env.features, env.task.device)


def measure_attention(
    env: GlimpseBase,
    agent: Agent,
    captions: Sequence[Captioned],
    reference: AttentionAgent | None = None,
    dtype: torch.dtype = torch.float32,
) -> AttentionMetrics:
    """Measure where an agent attended when it made captions, at least one.

    ``reference`` is the soft attention it is compared with; in ``dtype`` the captions' products were computed.
    """
    grid = find_world(env.dataset.name).grid
    same_grid = grid is None or env.captioner.encoder.grid.shape == grid.shape  # else locations are no tiles
    scenes = env.dataset if same_grid and isinstance(env.dataset, GroundedDataset) else None
    entropy, agreement = _replay_agents(env, agent, captions, reference, dtype)
    if entropy is None and agent.attention == "soft":
        weights = torch.from_numpy(np.concatenate([caption.glimpses for caption in captions]))
        entropy = weights_entropy(weights).mean().item()
    return AttentionMetrics(
        grounding=None if scenes is None else grounding(captions, scenes),
        empty=None if scenes is None else empty_glimpses(captions, scenes),
        entropy=entropy,
        locations=distinct_locations(captions),
        agreement=agreement,
    )


def _replay_agents(
    env: GlimpseBase, agent: Agent, captions: Sequence[Captioned], reference: AttentionAgent | None, dtype: torch.dtype
) -> tuple[float | None, float | None]:
    """Mean entropy of the agent's α and agreement with the reference, None where there is no such attention."""
    attentive = agent if isinstance(agent, AttentionAgent) else None
    if attentive is None and reference is None:
        return None, None
    device, longest = env.task.device, env.task.max_caption_length
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)  # as when they were made
    entropy, agreed, steps = 0.0, 0, 0
    source = (env.captioner, env.features, captions, agent.attention)
    for observation, alive, weights, _ in replay(*source, max_caption_length=longest, device=device, dtype=dtype):
        steps += int(alive.sum())
        with autocast:
            if attentive is not None:
                alpha = attentive.alpha(observation).cpu()
                entropy += weights_entropy(alpha)[torch.from_numpy(alive)].sum().item()
            if reference is not None:
                best = reference.alpha(observation).argmax(-1).cpu().numpy()
                agreed += int((best == weights.argmax(1))[alive].sum())
    return None if attentive is None else entropy / steps, None if reference is None else agreed / steps
