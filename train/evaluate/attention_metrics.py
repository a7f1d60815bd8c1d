"""How an agent looked: whether it had seen what it named, how sure it was, how much it moved, and who would agree.

Knows captions with their glimpses, the ground truth of Shapes, and attention. It does not know options or files.

A glimpse is the location a step gave the largest weight, the first of equals; of soft attention, too. So equal weights
everywhere count as the first location.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.attention import load_attention
from agents.attention_agents import SoftAttentionAgent
from agents.base import Agent, AttentionAgent
from agents.loading import shipped_attention
from glimpse_env.datasets.shapes import COLOURS, SHAPES, SIZES, Shapes
from glimpse_env.envs.task import TaskView
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner
from glimpse_env.rollout.beam_search import Captioned
from glimpse_env.rollout.decode import BATCH
from glimpse_env.rollout.dynamics import CaptionDynamics

CONTENT = frozenset((*SIZES, *COLOURS, *SHAPES))  # words of Shapes that name something


class Looking(NamedTuple):
    """How the agent of a set of captions looked.

    Attributes:
        grounding: ``grounding``; None without ground truth, or without words that it could be asked of.
        empty: ``empty``; None without ground truth.
        entropy: of the policy a step, mean, in nats: of α where the agent has one, else of the weights it looked with;
            None of an agent that names locations and does not tell how sure it is.
        locations: ``locations``.
        agreement: share of glimpses that are where soft attention, in the same place, has its largest weight; None
            without a soft attention.
    """

    grounding: float | None
    empty: float | None
    entropy: float | None
    locations: float
    agreement: float | None

    def __str__(self) -> str:
        """Those that apply, in one line."""
        return "  ".join(f"{name} {value:.3f}" for name, value in self._asdict().items() if value is not None)


def glimpses(caption: Captioned) -> npt.NDArray[np.int64]:
    """Where each step of a caption looked most, (steps,), int64."""
    return caption.looked.argmax(1)


def grounding(captions: Sequence[Captioned], scenes: Shapes) -> float | None:
    """Share of content words (sizes, colours, shapes) said of something that had been glimpsed before they were said.

    A word is grounded when the glimpse it was said at, or an earlier one, was at an object it is true of. So a word
    that is true of nothing in the scene never is. None when no content word was said.
    """
    grounded = []
    for caption in captions:
        tiles, seen = scenes.word_locations(caption.row), glimpses(caption)
        for step, word in enumerate(caption.words):
            if word in CONTENT:
                grounded.append(bool(np.isin(seen[: step + 1], tiles.get(word, ())).any()))
    return float(np.mean(grounded)) if grounded else None


def empty(captions: Sequence[Captioned], scenes: Shapes) -> float:
    """Share of glimpses, those for ``<end>`` included, at tiles that show no object."""
    missed = [
        ~np.isin(glimpses(caption), [thing.tile for thing in scenes.objects(caption.row)]) for caption in captions
    ]
    return float(np.concatenate(missed).mean())


def locations(captions: Sequence[Captioned]) -> float:
    """Mean number of different locations glimpsed in a caption."""
    return float(np.mean([len(np.unique(glimpses(caption))) for caption in captions]))


def entropy(weights: Tensor) -> Tensor:
    """Entropy in nats, (…,), float64, of distributions (…, L)."""
    return torch.special.entr(weights.double()).sum(-1)


class Replayed(NamedTuple):
    """One step of up to B captions that are made again.

    Attributes:
        observation: what an agent sees before it, with image rows (``observe="index"``).
        going: which captions have such a step, (B,), bool; the others' entries mean nothing.
        looked: where they look, (B, L), float32.
        logits: of the words, after that look, (B, V), float32; overwritten by the next step.
    """

    observation: dict[str, npt.NDArray[Any]]
    going: npt.NDArray[np.bool_]
    looked: npt.NDArray[np.float32]
    logits: Tensor


def replay(
    captioner: Captioner,
    features: FeatureTable,
    captions: Sequence[Captioned],
    attention: str,
    *,
    max_caption_length: int = 20,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Replayed]:
    """Make captions again, looking where they looked and saying what they said, however they were found.

    Args:
        captioner: whose decoder said them.
        features: annotations of the images.
        captions: what was said.
        attention: ``hard`` or ``soft``, the kind of action they were made with.
        max_caption_length: T they were made with.
        batch: captions at a time.
        device: where the decoder runs.
        dtype: of its products.

    Raises:
        ValueError: a caption has another number of glimpses than of words, or more than T.
    """
    for caption in captions:
        if len(caption.looked) != len(caption.words) + caption.ended or len(caption.looked) > max_caption_length:
            raise ValueError(
                f"the caption of row {caption.row} has {len(caption.looked)} glimpses and {len(caption.words)} words"
                f"{' and <end>' if caption.ended else ''}; expected as many, and at most {max_caption_length}"
            )
    size = max(min(batch, len(captions)), 1)
    dynamics = CaptionDynamics(
        captioner,
        features,
        references=None,
        reward=None,
        num_episodes=size,
        attention=attention,
        max_caption_length=max_caption_length,
        device=device,
        dtype=dtype,
    )
    vocabulary = captioner.vocabulary
    for start in range(0, len(captions), size):
        part = captions[start : start + size]
        steps = max(len(caption.looked) for caption in part)
        looked = np.zeros((steps, size, dynamics.num_locations), np.float32)
        words = np.full((steps, size), vocabulary.pad)
        going = np.zeros((steps, size), bool)
        for slot, caption in enumerate(part):
            length = len(caption.looked)
            looked[:length, slot] = caption.looked
            words[:length, slot] = [*vocabulary.encode(caption.words), *[vocabulary.end] * caption.ended]
            going[:length, slot] = True
        dynamics.begin(np.arange(len(part)), [caption.row for caption in part])
        for step in range(steps):
            observation = dynamics.observation("index")
            actions = looked[step].argmax(1) if attention == "hard" else looked[step]
            logits = dynamics.look(actions)
            yield Replayed(observation, going[step], looked[step], logits)
            dynamics.say(torch.from_numpy(words[step]))


def soft_reference(env: TaskView) -> SoftAttentionAgent | None:
    """The soft attention that is shipped for an environment's dataset, if it is made for captioners of such sizes."""
    try:
        path = shipped_attention("soft", env.dataset.name)
    except FileNotFoundError:
        return None
    module, config = load_attention(path), env.captioner.decoder.config
    if (module.config.feature_dim, module.config.hidden_dim) != (config.feature_dim, config.hidden_dim):
        return None
    return SoftAttentionAgent(module, env.features, env.task.device)


def watch(
    env: TaskView,
    agent: Agent,
    captions: Sequence[Captioned],
    reference: AttentionAgent | None = None,
    dtype: torch.dtype = torch.float32,
) -> Looking:
    """Measure how an agent looked when it made captions.

    Args:
        env: the environment it looked in.
        agent: who looked.
        captions: what came of it, at least one.
        reference: the soft attention it is compared with.
        dtype: of the products the captions were made with.
    """
    scenes = env.dataset if isinstance(env.dataset, Shapes) else None
    if scenes is not None and env.captioner.encoder.config.grid != (scenes.world.side, scenes.world.side):
        scenes = None  # its locations are no tiles
    unsure, agreed = _along(env, agent, captions, reference, dtype)
    if unsure is None and agent.attention == "soft":
        unsure = entropy(torch.from_numpy(np.concatenate([caption.looked for caption in captions]))).mean().item()
    return Looking(
        grounding=None if scenes is None else grounding(captions, scenes),
        empty=None if scenes is None else empty(captions, scenes),
        entropy=unsure,
        locations=locations(captions),
        agreement=agreed,
    )


def _along(
    env: TaskView, agent: Agent, captions: Sequence[Captioned], reference: AttentionAgent | None, dtype: torch.dtype
) -> tuple[float | None, float | None]:
    """Mean entropy of the agent's α and agreement with the reference, None where there is no such attention."""
    own = agent if isinstance(agent, AttentionAgent) else None
    if own is None and reference is None:
        return None, None
    device = env.task.device
    rounded = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)  # as when they were made
    unsure, agreed, steps = 0.0, 0, 0
    longest = env.task.max_caption_length
    made = (env.captioner, env.features, captions, agent.attention)
    for observation, going, looked, _ in replay(*made, max_caption_length=longest, device=device, dtype=dtype):
        steps += int(going.sum())
        with rounded:
            if own is not None:
                unsure += entropy(own.alpha(observation).cpu())[torch.from_numpy(going)].sum().item()
            if reference is not None:
                best = reference.alpha(observation).argmax(-1).cpu().numpy()
                agreed += int((best == looked.argmax(1))[going].sum())
    return None if own is None else unsure / steps, None if reference is None else agreed / steps
