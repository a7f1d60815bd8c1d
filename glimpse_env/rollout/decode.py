"""How a caption leaves the model: greedy, pure sampling, top-k, top-p and beam search, over any attention.

One loop over the dynamics makes captions for any number of images, many at a time; an image that is done gives its
place to the next. It asks a policy where to look and never how the policy knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from glimpse_env.core.checks import check_count
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner
from glimpse_env.rollout.beam_search import Beams, BeamSearch, Captioned, Paths, check_logits
from glimpse_env.rollout.dynamics import CaptionDynamics
from glimpse_env.rollout.word_sampling import Method, WordSampling

__all__ = ["BATCH", "BeamSearch", "Captioned", "Decoding", "Policy", "decode", "make_decoding"]

Decoding = Literal["greedy", "sample", "top-k", "top-p", "beam"]
BATCH = 125  # images at a time; more leave the cache


class Policy(Protocol):
    """Chooses where to look, with the signature of Stable-Baselines3's ``predict()``.

    A state's arrays hold one entry an episode along their first dimension; a policy that keeps another kind has a
    method ``fork(state, parents)`` for beam search, which returns the state of episodes ``parents`` (B,), int64.

    Attributes:
        attention: the kind of action it makes, ``hard`` (a location) or ``soft`` (weights over locations); an
            environment made with the same ``attention=`` understands it.
    """

    attention: Literal["hard", "soft"]

    def predict(
        self,
        observation: dict[str, npt.NDArray[Any]],
        state: Any = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], Any]:
        """Locations (B,) or weights (B, L) for a batch of observations, and the policy's new state."""
        ...


def make_decoding(
    method: str = "greedy",
    *,
    temperature: float = 1.0,
    top_k: int = 10,
    top_p: float = 0.9,
    beam_width: int = 3,
    length_normalisation: float = 0.0,
    block_ngram: int = 0,
) -> WordSampling | BeamSearch:
    """The way of decoding that options name.

    Raises:
        ValueError: the method is unknown, or a value is outside its range.
    """
    if method == "beam":
        return BeamSearch(beam_width, length_normalisation, block_ngram)
    if method not in get_args(Decoding):
        raise ValueError(f"unknown decoding {method!r}; expected one of {', '.join(get_args(Decoding))}")
    known: Method = method  # type: ignore[assignment]
    return WordSampling(known, temperature, top_k, top_p)


def decode(
    captioner: Captioner,
    features: FeatureTable,
    policy: Policy,
    rows: Sequence[int] | None = None,
    decoding: WordSampling | BeamSearch | str = "greedy",
    *,
    deterministic: bool = True,
    rng: np.random.Generator | None = None,
    max_caption_length: int = 20,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: str | None = None,
) -> list[Captioned]:
    """Caption images.

    Args:
        captioner: its decoder says the words.
        features: annotations of the images.
        policy: chooses where to look, for every hypothesis on its own.
        rows: which images, in the order of the answer; by default all.
        decoding: how the words are chosen, or the name of a way with its usual options.
        deterministic: handed to the policy: whether it takes the best location, or draws one.
        rng: draws words when the decoding is random; by default a generator with seed 0.
        max_caption_length: T, words after which a caption is complete even without ``<end>``.
        batch: images at a time.
        device: where the decoder runs.
        dtype: of the products, the policy's too; bfloat16 is faster where the processor multiplies it natively, and
            changes a word now and then.
        progress: label of a progress bar; None for none.

    Raises:
        ValueError: an unknown way of decoding, top-k or a beam wider than the vocabulary, an empty batch, no such row,
            logits that are not numbers, or a beam over a policy whose state cannot be forked.
        InvalidAction: the policy's actions are not such.
    """
    if isinstance(decoding, str):
        decoding = make_decoding(decoding)
    if not isinstance(decoding, (WordSampling, BeamSearch)):
        raise ValueError(f"decoding must be a WordSampling, a BeamSearch or a name, got {decoding!r}")
    chosen = np.asarray(range(len(features)) if rows is None else rows)
    if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"rows must be integers, got {chosen.dtype}")
    chosen = chosen.astype(np.int64)
    outside = chosen[(chosen < 0) | (chosen >= len(features))]
    if outside.size:
        raise ValueError(f"row {outside[0]} does not exist; expected an integer in [0, {len(features)})")
    beam = decoding if isinstance(decoding, BeamSearch) else None
    sampling = decoding if isinstance(decoding, WordSampling) else WordSampling()
    width = beam.width if beam else 1
    if width > len(captioner.vocabulary):
        raise ValueError(f"beam width {width} is beyond the vocabulary of {len(captioner.vocabulary)} words")
    check_count("batch", batch, 1)
    images = max(min(batch, len(chosen)), 1)
    dynamics = CaptionDynamics(
        captioner,
        features,
        references=None,
        reward=None,
        num_episodes=images * width,
        attention=policy.attention,
        sampling=sampling,
        max_caption_length=max_caption_length,
        per_image=width,
        device=device,
        dtype=dtype,
    )
    rounded = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    search = Beams(dynamics, beam) if beam else _Walks(dynamics, rng or np.random.default_rng(0))
    finished: dict[int, Captioned] = {}  # by place in the answer
    place = np.full(images, -1)  # of the image each group of episodes shows, −1 for none
    waiting = 0
    state: Any = None
    starts = np.zeros(images * width, bool)
    done = np.ones(images, bool)
    with tqdm(total=len(chosen), desc=progress, unit="caption", disable=progress is None, leave=False) as bar:
        while True:
            free = done.nonzero()[0][: len(chosen) - waiting]
            place[done] = -1
            place[free] = np.arange(waiting, waiting + len(free))
            waiting += len(free)
            if not (place >= 0).any():
                return [finished[number] for number in range(len(chosen))]
            if len(free):
                slots = (free[:, None] * width + np.arange(width)).ravel()
                dynamics.begin(slots, chosen[place[free]].repeat(width))
                search.begin(free)
                starts[slots] = True
            with rounded:
                actions, state = policy.predict(dynamics.observation("index"), state, starts, deterministic)
            starts[:] = False
            parents = search.step(actions)
            state = _forked(policy, state, parents, images * width)
            done = search.done() & (place >= 0)
            for group in done.nonzero()[0].tolist():
                finished[int(place[group])] = search.caption(group)
            bar.update(int(done.sum()))


def _forked(policy: Policy, state: Any, parents: Tensor | None, episodes: int) -> Any:
    """A policy's state after hypotheses were dropped and doubled: by its own ``fork``, or along first dimensions."""
    if parents is None or state is None:
        return state
    own = getattr(policy, "fork", None)
    if own is not None:
        return own(state, parents.numpy())
    if isinstance(state, Mapping):
        return {name: _forked(policy, part, parents, episodes) for name, part in state.items()}
    if isinstance(state, (tuple, list)):
        parts = [_forked(policy, part, parents, episodes) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if not isinstance(state, (np.ndarray, Tensor)) or state.ndim == 0 or state.shape[0] != episodes:
        raise ValueError(
            f"a beam must fork the policy's state, but {type(state).__name__} of shape {np.shape(state)} has no first "
            f"dimension of {episodes} episodes; give the policy a method fork(state, parents)"
        )
    return state[parents.numpy()] if isinstance(state, np.ndarray) else state[parents.to(state.device)]


class _Walks:
    """Captions made word by word, one hypothesis an image."""

    def __init__(self, dynamics: CaptionDynamics, rng: np.random.Generator) -> None:
        self._dynamics, self._rng = dynamics, rng
        self._paths = Paths(dynamics)
        self._score = torch.zeros(dynamics.num_episodes, dtype=torch.float64)

    def begin(self, groups: npt.NDArray[np.int64]) -> None:
        self._score[torch.from_numpy(groups)] = 0

    def step(self, actions: npt.NDArray[Any]) -> None:
        dynamics = self._dynamics
        self._paths.add(actions)
        logits = dynamics.look(actions)
        uniforms = torch.from_numpy(self._rng.random(dynamics.num_episodes)) if dynamics.sampling.random else None
        words = dynamics.sampling.choose(logits, None if uniforms is None else uniforms.to(dynamics.device))
        said = logits.log_softmax(-1).gather(1, words.unsqueeze(1)).squeeze(1)
        check_logits(said)
        self._score += said.cpu().double() * torch.from_numpy(~dynamics.episodes.ended)
        dynamics.say(words)

    def done(self) -> npt.NDArray[np.bool_]:
        return self._dynamics.episodes.ended.copy()

    def caption(self, group: int) -> Captioned:
        dynamics = self._dynamics
        row, length = int(dynamics.episodes.rows[group]), int(dynamics.episodes.lengths[group])
        looked = self._paths.weights[group, :length].copy()
        return Captioned(row, dynamics.caption(group), dynamics.said_end(group), looked, float(self._score[group]))
