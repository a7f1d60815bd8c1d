"""How a caption leaves the model: greedy, pure sampling, top-k, top-p and beam search, over any attention.

One loop over the dynamics makes captions for any number of images, many at a time; an image that is done gives its
place to the next. It asks a policy where to look and never how the policy knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from glimpse_env.captioner import Captioner
from glimpse_env.dynamics import CaptionDynamics
from glimpse_env.features import FeatureTable
from glimpse_env.sampling import Method, WordSampling, check_count

Decoding = Literal["greedy", "sample", "top-k", "top-p", "beam"]
BATCH = 125  # images at a time; more leave the cache


class Policy(Protocol):
    """Chooses where to look, as the agents do and Stable-Baselines3's models."""

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


class Captioned(NamedTuple):
    """One finished caption.

    Attributes:
        row: of its image.
        words: without ``<end>``.
        ended: whether ``<end>`` was said.
        looked: where each step looked, (steps, L), float32 weights that sum to one.
        log_probability: sum of the words' log-probabilities under the decoder, ``<end>`` included, in nats.
    """

    row: int
    words: list[str]
    ended: bool
    looked: npt.NDArray[np.float32]
    log_probability: float


@dataclass(frozen=True)
class BeamSearch:
    """Beam search that is monotone in its width (Lemons et al. 2022).

    The hypotheses of an image stand in order. Each is extended in turn to the best caption, not taken yet, that grows
    from one of the hypotheses up to its own place. So the first is the greedy caption, the first k are the beam of
    width k whatever the width, and a wider beam never finds a worse caption.

    Attributes:
        width: K, hypotheses an image.
        length_normalisation: λ, captions are ranked by their log-probability / lengthᵀ with exponent λ; 0 leaves the
            probability, 1 the mean a word.
        block_ngram: no n-gram of this length is said twice; 0 allows all.

    Raises:
        ValueError: a value is outside its range.
    """

    width: int = 3
    length_normalisation: float = 0.0
    block_ngram: int = 0

    def __post_init__(self) -> None:
        check_count("beam width", self.width, 1)
        if not 0 <= self.length_normalisation < float("inf"):
            raise ValueError(f"length_normalisation must be at least 0 and finite, got {self.length_normalisation}")
        check_count("block_ngram", self.block_ngram, 0)


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
    """The way of decoding that options name; those of other methods are not read.

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
    decoding: WordSampling | BeamSearch | None = None,
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
        decoding: how the words are chosen; greedily by default.
        deterministic: handed to the policy: whether it takes the best location, or draws one.
        rng: draws words when the decoding is random; by default a generator with seed 0.
        max_caption_length: T, words after which a caption is complete even without ``<end>``.
        batch: images at a time.
        device: where the decoder runs.
        dtype: of the products, the policy's too; bfloat16 is faster where the processor multiplies it natively, and
            changes a word now and then.
        progress: label of a progress bar; None for none.

    Raises:
        ValueError: top-k or the beam is wider than the vocabulary, the batch is empty, or there is no such row.
    """
    chosen = np.arange(len(features)) if rows is None else np.asarray(rows, np.int64)
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
        dataset=None,
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
    search = _Beams(dynamics, beam) if beam else _Walks(dynamics, rng or np.random.default_rng(0))
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
            state = _forked(state, parents)
            done = search.done() & (place >= 0)
            for group in done.nonzero()[0].tolist():
                finished[int(place[group])] = search.caption(group)
            bar.update(int(done.sum()))


def _forked(state: Any, parents: Tensor | None) -> Any:
    """A policy's state, its arrays reordered along their first dimension."""
    if parents is None or state is None:
        return state
    if isinstance(state, (tuple, list)):
        parts = [_forked(part, parents) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state[parents.numpy()] if isinstance(state, np.ndarray) else state[parents.to(state.device)]


class _Walks:
    """Captions made word by word, one hypothesis an image."""

    def __init__(self, dynamics: CaptionDynamics, rng: np.random.Generator) -> None:
        self._dynamics, self._rng = dynamics, rng
        self._paths = _Paths(dynamics)
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
        self._score += torch.where(dynamics.episodes.ended, 0.0, said.cpu().double())
        dynamics.say(words)

    def done(self) -> npt.NDArray[np.bool_]:
        ended: npt.NDArray[np.bool_] = self._dynamics.episodes.ended.numpy().copy()
        return ended

    def caption(self, group: int) -> Captioned:
        dynamics = self._dynamics
        row, length = int(dynamics.episodes.rows[group]), int(dynamics.episodes.lengths[group])
        looked = self._paths.weights[group, :length].copy()
        return Captioned(row, dynamics.caption(group), dynamics.said_end(group), looked, float(self._score[group]))


class _Paths:
    """Where the episodes have looked, word by word: (B, T, L), float32."""

    def __init__(self, dynamics: CaptionDynamics) -> None:
        self._dynamics = dynamics
        self.weights = np.zeros(
            (dynamics.num_episodes, dynamics.max_caption_length, dynamics.num_locations), np.float32
        )

    def add(self, actions: npt.NDArray[Any]) -> None:
        episodes = self._dynamics.episodes
        going = (~episodes.ended).numpy()
        self.weights[going, episodes.lengths.numpy()[going]] = self._dynamics.weights(actions)[going]


class _Beams:
    """The hypotheses of many images, K each, and the best finished caption of each image so far."""

    def __init__(self, dynamics: CaptionDynamics, search: BeamSearch) -> None:
        self._dynamics, self._search = dynamics, search
        self._paths = _Paths(dynamics)
        groups = dynamics.num_episodes // search.width
        self._scores = torch.full((groups, search.width), -torch.inf, dtype=torch.float64)  # −∞: no hypothesis
        self._value = torch.full((groups,), -torch.inf, dtype=torch.float64)  # rank of the best finished caption
        self._best: list[Captioned | None] = [None] * groups
        self._first = torch.arange(groups).unsqueeze(1) * search.width  # episode of each image's first hypothesis

    def begin(self, groups: npt.NDArray[np.int64]) -> None:
        places = torch.from_numpy(groups)
        self._scores[places] = -torch.inf
        self._scores[places, 0] = 0
        self._value[places] = -torch.inf

    def step(self, actions: npt.NDArray[Any]) -> Tensor:
        dynamics = self._dynamics
        self._paths.add(actions)
        logits = dynamics.look(actions)
        norm = logits.logsumexp(-1, keepdim=True)  # (B, 1); a blocked word's mass goes to no other word
        if self._search.block_ngram:
            said = dynamics.episodes.words, dynamics.episodes.lengths
            banned = repeats(*said, self._search.block_ngram, logits.shape[1])
            logits = logits.masked_fill(banned.to(logits.device), -torch.inf)
        likeliest, words = logits.topk(min(self._search.width, logits.shape[1]))  # (B, C): no parent gives more
        logs = (likeliest.double() - norm).cpu()
        parents, chosen, self._scores = extend(self._scores, logs.reshape(*self._scores.shape, -1))
        episodes = self._first + parents
        dynamics.fork(episodes.flatten())
        self._paths.weights = self._paths.weights[episodes.flatten().numpy()]
        dynamics.say(words.cpu()[episodes, chosen].flatten())
        self._settle()
        return episodes.flatten()

    def _settle(self) -> None:
        """Keep what has ended, if it is the best of its image."""
        episodes = self._dynamics.episodes
        ended = episodes.ended.reshape(self._scores.shape)
        length = episodes.lengths.reshape(self._scores.shape).double()
        power = self._search.length_normalisation
        ranks = torch.where(ended, self._scores / length**power, -torch.inf)
        best, which = ranks.max(1)
        for group in (best > self._value).nonzero().squeeze(1).tolist():
            slot = int(self._first[group, 0] + which[group])
            looked = self._paths.weights[slot, : int(episodes.lengths[slot])].copy()
            self._best[group] = Captioned(
                int(episodes.rows[slot]),
                self._dynamics.caption(slot),
                self._dynamics.said_end(slot),
                looked,
                float(self._scores[group, which[group]]),
            )
        self._value = torch.maximum(self._value, best)
        self._scores = torch.where(ended, -torch.inf, self._scores)

    def done(self) -> npt.NDArray[np.bool_]:
        """No hypothesis can become better than the best finished caption: words only lower its probability."""
        hope = self._scores.amax(1) / self._dynamics.max_caption_length**self._search.length_normalisation
        done: npt.NDArray[np.bool_] = (hope <= self._value).numpy()
        return done

    def caption(self, group: int) -> Captioned:
        best = self._best[group]
        if best is None:
            raise RuntimeError(f"image group {group} has no finished caption")
        return best


def extend(scores: Tensor, logs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of monotone beam search for N images with K hypotheses each.

    Args:
        scores: log-probability of each hypothesis, −∞ where there is none, (N, K), float64.
        logs: log-probabilities of the C likeliest next words of each, (N, K, C), float64.

    Returns:
        Which hypothesis each new one grows from, (N, K); which of that one's C words it says, (N, K); and its
        log-probability, (N, K), −∞ where nothing was left to grow.
    """
    width, words = logs.shape[1:]
    grown = (scores.unsqueeze(-1) + logs).flatten(1)  # (N, K · C)
    taken, values = [], []
    for place in range(width):
        value, pick = grown[:, : (place + 1) * words].max(1)
        grown.scatter_(1, pick.unsqueeze(1), -torch.inf)
        taken.append(pick)
        values.append(value)
    picks = torch.stack(taken, 1)
    return picks // words, picks % words, torch.stack(values, 1)


def repeats(words: Tensor, lengths: Tensor, order: int, vocab_size: int) -> Tensor:
    """Which words would repeat an n-gram of a caption.

    Args:
        words: said so far, (B, T), int64.
        lengths: how many, (B,), int64.
        order: n.
        vocab_size: V.

    Returns:
        (B, V), bool.
    """
    batch, longest = words.shape
    banned = torch.zeros(batch, vocab_size, dtype=torch.bool)
    if longest < order:
        return banned
    windows = words.unfold(1, order, 1)  # (B, T − n + 1, n)
    last = (lengths.unsqueeze(1) - order + 1 + torch.arange(order - 1)).clamp(min=0)  # places of the last n − 1 words
    alike = (windows[..., :-1] == words.gather(1, last).unsqueeze(1)).all(-1)  # (B, T − n + 1)
    alike &= torch.arange(longest - order + 1) + order <= lengths.unsqueeze(1)
    return banned.scatter(1, torch.where(alike, windows[..., -1], 0), alike)  # 0 is <pad>, which is never said
