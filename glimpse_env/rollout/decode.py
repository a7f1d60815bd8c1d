"""Decoding: captions of many images under any attention policy, by greedy search, sampling or beam search.

A fixed number of images are decoded together; when the caption of one is complete, the next image takes its episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from glimpse_env.core.checks import check_count
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner
from glimpse_env.rollout.beam_search import Beams, BeamSearch, Captioned, Search, check_logits
from glimpse_env.rollout.word_sampling import Method, WordSampling

Decoding = Literal["greedy", "sample", "top-k", "top-p", "beam"]
BATCH = 125  # images at a time; more leave the cache


class Policy(Protocol):
    """An attention policy, with the signature of Stable-Baselines3's ``predict()``.

    The arrays of its state hold one entry an episode along their first dimension. A policy with another kind of state
    has a method ``fork(state, parents)`` for beam search, which returns the state of episodes ``parents`` (B,), int64.

    Attributes:
        attention: the kind of its actions, ``hard`` (a location) or ``soft`` (weights over locations); environments
            made with the same ``attention=`` take them.
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
    """The decoding method that options name.

    Raises:
        ValueError: the method is unknown, or a value is outside its range.
    """
    if method == "beam":
        return BeamSearch(beam_width, length_normalisation, block_ngram)
    if method not in get_args(Decoding):
        raise ValueError(f"unknown decoding {method!r}; expected one of {', '.join(get_args(Decoding))}")
    return WordSampling(cast(Method, method), temperature, top_k, top_p)


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
        captioner: its decoder generates the words.
        features: annotations of the images.
        policy: chooses the glimpses, for every hypothesis by itself.
        rows: which images, in the order of the result; by default all.
        decoding: how the words are chosen, or the name of a method with its default options.
        deterministic: passed to the policy: whether it takes the best location, or draws one.
        rng: draws words when the decoding is random; by default a generator with seed 0.
        max_caption_length: T, steps after which a caption is complete even without ``<end>``.
        batch: images at a time.
        device: where the decoder runs.
        dtype: of the products, the policy's too; bfloat16 is faster on processors that multiply it natively, and
            changes a word now and then.
        progress: label of a progress bar; None for none.

    Raises:
        ValueError: an argument has no such value, logits are NaN, or a beam cannot fork the policy's state.
        InvalidAction: an action of the policy is invalid.
    """
    images = _check_rows(rows, len(features))
    check_count("batch", batch, 1)
    options = dict(features=features, attention=policy.attention, max_caption_length=max_caption_length)
    groups = max(min(batch, len(images)), 1)
    search = _make_search(decoding, captioner, groups, rng, **options, device=device, dtype=dtype)
    with tqdm(total=len(images), desc=progress, unit="caption", disable=progress is None, leave=False) as bar:
        return _caption_all(search, policy, images, deterministic, bar)


def _make_search(
    decoding: WordSampling | BeamSearch | str,
    captioner: Captioner,
    groups: int,
    rng: np.random.Generator | None,
    **options: Any,
) -> Beams | _SampledCaptions:
    """A search over ``groups`` images at a time; ``options`` are of ``CaptionDynamics``."""
    if isinstance(decoding, str):
        decoding = make_decoding(decoding)
    if isinstance(decoding, BeamSearch):
        words = len(captioner.vocabulary)
        if decoding.width > words:
            raise ValueError(f"beam width {decoding.width} is beyond the vocabulary of {words} words")
        return Beams(groups, decoding, captioner=captioner, **options)
    if not isinstance(decoding, WordSampling):
        raise ValueError(f"decoding must be a WordSampling, a BeamSearch or a name, got {decoding!r}")
    return _SampledCaptions(groups, decoding, rng or np.random.default_rng(0), captioner=captioner, **options)


def _check_rows(rows: Sequence[int] | None, num_images: int) -> npt.NDArray[np.int64]:
    array = np.asarray(range(num_images) if rows is None else rows)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"rows must be integers, got {array.dtype}")
    outside = array[(array < 0) | (array >= num_images)]
    if outside.size:
        raise ValueError(f"row {outside[0]} does not exist; expected an integer in [0, {num_images})")
    return array.astype(np.int64)


def _caption_all(
    search: Beams | _SampledCaptions, policy: Policy, images: npt.NDArray[np.int64], deterministic: bool, bar: tqdm[Any]
) -> list[Captioned]:
    """Caption the rows ``images``; a group of episodes whose caption is complete takes the next image."""
    dynamics = search.dynamics
    width, size = dynamics.per_image, dynamics.num_episodes
    autocast = torch.autocast(dynamics.device.type, torch.bfloat16, enabled=dynamics.decoder.dtype == torch.bfloat16)
    captions: dict[int, Captioned] = {}  # by index into ``images``
    indices = np.full(size // width, -1)  # of the image that each group captions, −1 for none
    done = np.ones(size // width, bool)
    episode_start = np.zeros(size, bool)
    started = 0
    state: Any = None
    while True:
        free = done.nonzero()[0][: len(images) - started]
        indices[done] = -1
        indices[free] = np.arange(started, started + len(free))
        started += len(free)
        if not (indices >= 0).any():
            return [captions[index] for index in range(len(images))]
        if len(free):
            slots = (free[:, None] * width + np.arange(width)).ravel()
            dynamics.begin(slots, images[indices[free]].repeat(width))
            search.begin(free)
            episode_start[slots] = True
        with autocast:
            actions, state = policy.predict(dynamics.observation("index"), state, episode_start, deterministic)
        episode_start[:] = False
        state = _fork_state(policy, state, search.step(actions), size)
        done = search.done() & (indices >= 0)
        for group in done.nonzero()[0].tolist():
            captions[int(indices[group])] = search.caption(group)
        bar.update(int(done.sum()))


def _fork_state(policy: Policy, state: Any, parents: Tensor | None, size: int) -> Any:
    """A policy's state of the episodes ``parents``: by the policy's own ``fork``, or along first dimensions."""
    if parents is None or state is None:
        return state
    fork = getattr(policy, "fork", None)
    if fork is not None:
        return fork(state, parents.numpy())
    if isinstance(state, Mapping):
        return {name: _fork_state(policy, value, parents, size) for name, value in state.items()}
    if isinstance(state, (tuple, list)):
        values = [_fork_state(policy, value, parents, size) for value in state]
        return type(state)(*values) if hasattr(state, "_fields") else type(state)(values)
    if not isinstance(state, (np.ndarray, Tensor)) or state.ndim == 0 or state.shape[0] != size:
        raise ValueError(
            f"a beam must fork the policy's state, but {type(state).__name__} of shape {np.shape(state)} has no first "
            f"dimension of {size} episodes; give the policy a method fork(state, parents)"
        )
    return state[parents.numpy()] if isinstance(state, np.ndarray) else state[parents.to(state.device)]


class _SampledCaptions(Search):
    """Captions generated word by word, one hypothesis an image."""

    def __init__(self, groups: int, sampling: WordSampling, rng: np.random.Generator, **options: Any) -> None:
        super().__init__(groups, 1, sampling=sampling, **options)
        self._rng = rng
        self._log_probability = torch.zeros(groups, dtype=torch.float64)

    def begin(self, groups: npt.NDArray[np.int64]) -> None:
        self._log_probability[torch.from_numpy(groups)] = 0

    def step(self, actions: npt.NDArray[Any]) -> None:
        dynamics = self.dynamics
        logits = self._attend(actions)
        uniforms = torch.from_numpy(self._rng.random(dynamics.num_episodes)) if dynamics.sampling.random else None
        words = dynamics.sampling.choose(logits, None if uniforms is None else uniforms.to(dynamics.device))
        logs = logits.log_softmax(-1).gather(1, words.unsqueeze(1)).squeeze(1)
        check_logits(logs)
        self._log_probability += logs.cpu().double() * torch.from_numpy(~dynamics.episodes.ended)
        dynamics.append_words(words)

    def done(self) -> npt.NDArray[np.bool_]:
        return self.dynamics.episodes.ended.copy()

    def caption(self, group: int) -> Captioned:
        return self._captioned(group, float(self._log_probability[group]))
