"""The transition of B caption episodes: attend to a location, append a word, pay the reward.

Environments, decoding and training from reward step through it; cross-entropy training runs along true captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.core.arrays import Integers
from glimpse_env.core.checks import check_count
from glimpse_env.features.table import FeatureTable
from glimpse_env.metrics.caption_metrics import metric_columns
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import RewardFn
from glimpse_env.models.captioner import Captioner
from glimpse_env.models.frozen_decoder import FrozenDecoder
from glimpse_env.rollout.actions import CheckedActions, check_attention, check_locations, check_weights
from glimpse_env.rollout.caption_rewards import CaptionRewards
from glimpse_env.rollout.initial_states import InitialStates
from glimpse_env.rollout.state import EpisodeBatch, Snapshot, Transition
from glimpse_env.rollout.word_sampling import WordSampling

MAX_CAPTION_LENGTH = 1000  # every episode holds room for all words of its caption


class CaptionDynamics:
    """B caption episodes, stepped together.

    Args:
        captioner: a frozen captioner; its decoder generates the words.
        features: annotation vectors of the split.
        references: of the split; None where captions are not scored.
        reward: scores captions; None for no reward.
        metrics: names of the metrics that complete captions report.
        num_episodes: B.
        attention: ``hard``: an action is a location; ``soft``: weights over locations.
        sampling: how words are chosen from logits.
        shaped: pay the change of the caption's score at every word instead of its score at the end; the sum is equal.
        max_caption_length: T, steps after which a caption is complete even without ``<end>``.
        per_image: K successive episodes that always share one image, such as the hypotheses of a beam; what depends
            on the image alone is then computed once for them.
        decoder: the captioner's decoder, packed already; it determines device and dtype.
        initial_states: of ``decoder`` on ``features``, if they exist already.
        device: without a decoder, where it runs.
        dtype: without a decoder, the type of its products; see ``FrozenDecoder``.
    """

    def __init__(
        self,
        captioner: Captioner,
        features: FeatureTable,
        references: SplitReferences | None = None,
        reward: RewardFn | None = None,
        *,
        metrics: Sequence[str] = ("bleu",),
        num_episodes: int,
        attention: str = "hard",
        sampling: WordSampling | None = None,
        shaped: bool = False,
        max_caption_length: int = 20,
        per_image: int = 1,
        decoder: FrozenDecoder | None = None,
        initial_states: InitialStates | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_attention(attention)
        _check_sizes(num_episodes, per_image, max_caption_length, sampling, len(captioner.vocabulary))
        self.vocabulary, self.features = captioner.vocabulary, features
        self.decoder = decoder or FrozenDecoder(captioner.decoder, self.vocabulary.suppressed, device, dtype)
        self.device = self.decoder.device
        self.attention, self.sampling, self.shaped = attention, sampling or WordSampling(), shaped
        self.max_caption_length, self.per_image = max_caption_length, per_image
        self.num_locations = features.shape[1]
        self._initial_states = initial_states or InitialStates(self.decoder, features)
        hidden_dim, projected_dim = self.decoder.config.hidden_dim, self.decoder.config.context_dim
        self.metric_columns = metric_columns(metrics)
        sizes = num_episodes, hidden_dim, max_caption_length, self.num_locations
        num_metrics = max(columns.stop for columns in self.metric_columns.values())
        self.episodes = EpisodeBatch.empty(*sizes, num_metrics, self.vocabulary, self.device)
        self._slots = np.arange(num_episodes)
        self._rewards = CaptionRewards(
            reward, references, self.metric_columns, shaped, self.episodes, self._read_caption
        )
        if attention == "soft":  # projected annotations of every image, which soft weights mix: (B / K, L, P)
            shape = (num_episodes // per_image, self.num_locations, projected_dim)
            self._projected = torch.zeros(shape, dtype=self.decoder.dtype, device=self.device)

    @property
    def num_episodes(self) -> int:
        """B."""
        return len(self._slots)

    def _read_caption(self, slot: int) -> tuple[int, list[str], bool]:
        """Row, words and whether they end with ``<end>``; a bound method, so a copy of the dynamics reads its own."""
        return int(self.episodes.rows[slot]), self.caption(slot), self.has_end(slot)

    def set_decoder(self, decoder: FrozenDecoder) -> None:
        """Replace the decoder, for example after training; all episodes must begin again after this call."""
        self.decoder = decoder
        self._initial_states = InitialStates(decoder, self.features)

    @torch.inference_mode()
    def begin(self, slots: npt.ArrayLike, rows: npt.ArrayLike) -> None:
        """Start new episodes.

        Args:
            slots: which episodes, (B',); with several episodes an image, all of an image in succession.
            rows: the image of each, (B',).
        """
        slots, rows = np.asarray(slots), np.asarray(rows)
        images = rows[:: self.per_image]
        self.features.pin(images, self.device)
        self._rewards.begin(slots, rows)  # first, because an image without references raises an error
        episodes = self.episodes
        episodes.rows[slots] = rows
        episodes.words[slots] = self.vocabulary.pad
        episodes.last[slots] = self.vocabulary.start
        for array in episodes[episodes._fields.index("lengths") :]:
            array[slots] = 0
        indices = torch.from_numpy(slots).to(self.device)
        if self.decoder.config.init == "mean":
            for state, initial in zip(episodes.state, self._initial_states[images], strict=True):
                state.index_copy_(0, indices, initial.repeat_interleave(self.per_image, 0))
        else:
            for state in episodes.state:
                state.index_fill_(0, indices, 0)
        if self.attention == "soft":
            annotations = torch.from_numpy(self.features[images]).to(self.device)  # (B' / K, L, D)
            self._projected[indices[:: self.per_image] // self.per_image] = self.decoder.project(annotations)

    def check_actions(self, actions: npt.ArrayLike) -> CheckedActions:
        """The actions of B episodes as locations (B,), int64, or as weights (B, L), float32, that sum to one.

        Raises:
            InvalidAction: a location out of range or masked, a wrong type or shape, or negative, too large or
                non-finite weights.
        """
        check = check_locations if self.attention == "hard" else check_weights
        masks = self.features.masks
        if masks is not None:  # the actions of ended episodes have no effect
            masks = masks[self.episodes.rows] | self.episodes.ended[:, None]
        return check(actions, self.num_episodes, self.num_locations, masks)

    def action_masks(self, slots: Integers | slice = slice(None)) -> npt.NDArray[np.int8]:
        """Which locations the images of episodes have: int8 (B', L), ones and zeros."""
        rows, masks = self.episodes.rows[slots], self.features.masks
        return np.ones((len(rows), self.num_locations), np.int8) if masks is None else masks[rows].astype(np.int8)

    def step(
        self, actions: npt.ArrayLike, uniforms: npt.ArrayLike | None = None, *, keep_ended: bool = True
    ) -> Transition:
        """Attend and append one word, in every episode that has not ended.

        Args:
            actions: locations (B,) or weights (B, L), as ``check_actions`` takes them.
            uniforms: (B,) numbers in [0, 1), when words are drawn.
            keep_ended: as ``attend`` takes it.

        Raises:
            InvalidAction: as ``check_actions``; nothing has changed then.
        """
        logits = self.attend(actions, keep_ended=keep_ended)
        draws = None if uniforms is None else torch.as_tensor(uniforms, dtype=torch.float64, device=self.device)
        return self.append_words(self.sampling.choose(logits, draws))

    @torch.inference_mode()
    def attend(self, actions: npt.ArrayLike, *, keep_ended: bool = True) -> Tensor:
        """The first half of a step: one decoder step from the context that the actions select.

        Args:
            actions: as ``step`` takes them.
            keep_ended: whether the decoder states of ended episodes stay as they are; False costs less, but these
                episodes must begin again before their states are read.

        Returns:
            Logits of the next word, (B, V), float32, −∞ for words that are never generated; the next call overwrites
            them.
        """
        checked = self.check_actions(actions)
        episodes = self.episodes
        last = torch.from_numpy(episodes.last).to(self.device)
        logits, state = self.decoder.step_projected(self._context(checked), last, episodes.state)
        alive = ~episodes.ended
        if keep_ended and episodes.ended.any():
            ended = torch.from_numpy(episodes.ended.nonzero()[0]).to(self.device)
            for new, old in zip(state, episodes.state, strict=True):
                new.index_copy_(0, ended, old.index_select(0, ended))
        self.episodes = episodes._replace(hidden=state.hidden, cell=state.cell)
        if self.attention == "hard":  # one flat index is twice as fast as two
            episodes.attention_sum.reshape(-1)[self._slots * self.num_locations + checked] += alive
        else:
            episodes.attention_sum[...] += checked * alive[:, None]
        return logits

    def _context(self, actions: CheckedActions) -> Tensor:
        """The projected context vectors, (B, P): of a_i (SAT eq. 9), or of Σ α_i a_i (SAT eq. 13)."""
        if self.attention == "hard":
            return self.decoder.project(self.features.gather_tensor(self.episodes.rows, actions, self.device))
        weights = torch.from_numpy(actions).to(self.device).reshape(-1, self.per_image, self.num_locations)
        return (weights.to(self._projected.dtype) @ self._projected).flatten(0, 1)

    @torch.inference_mode()
    def append_words(self, words: Tensor) -> Transition:
        """The second half of a step: append a word to every caption that has not ended, and pay its reward.

        ``<blank>`` is a silent step: it is the last word that the decoder reads next, and the caption does not grow.

        Args:
            words: ids, (B,), int64.
        """
        episodes = self.episodes
        alive = ~episodes.ended
        appended = words.cpu().numpy()
        if not alive.all():
            appended = np.where(alive, appended, self.vocabulary.pad)
        growing = alive if self.vocabulary.blank is None else alive & (appended != self.vocabulary.blank)
        slots = self._slots if growing.all() else growing.nonzero()[0]
        episodes.words[slots, episodes.lengths[slots]] = appended[slots]
        np.copyto(episodes.last, appended, where=alive)
        episodes.lengths[...] += growing
        episodes.steps[...] += alive
        episodes.ended[...] |= (appended == self.vocabulary.end) | (episodes.steps == self.max_caption_length)
        self._rewards.append(words, growing)
        return Transition(appended, self._rewards.pay(episodes, alive), episodes.ended.copy())

    @torch.inference_mode()
    def fork(self, parents: Tensor) -> None:
        """Replace episode b by a copy of episode ``parents[b]``, between two steps or between the halves of one.

        Args:
            parents: (B,), int64; with several episodes an image (``per_image``), of the same image.
        """
        self.episodes = self.episodes.select(parents)
        if self.attention == "soft" and self.per_image == 1:
            self._projected = self._projected[parents.to(self.device)]
        self._rewards.fork(parents)

    def caption(self, slot: int) -> list[str]:
        """Words of an episode's caption so far, without ``<end>``."""
        return self.captions(np.array([slot]))[0]

    def captions(self, slots: Integers) -> list[list[str]]:
        """``caption`` of some episodes, (B',)."""
        word_of, episodes = self.vocabulary.words.__getitem__, self.episodes
        lengths = (episodes.lengths - (episodes.last == self.vocabulary.end))[slots].tolist()
        captions = zip(episodes.words[slots].tolist(), lengths, strict=True)
        return [list(map(word_of, ids[:length])) for ids, length in captions]

    def has_end(self, slot: int) -> bool:
        """Whether an episode's last word is ``<end>``."""
        return bool(self.episodes.last[slot] == self.vocabulary.end)

    def weights(self, actions: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Actions of either kind as weights over locations, (B, L), float32, each row with sum one."""
        checked = self.check_actions(actions)
        if self.attention == "hard":
            return np.eye(self.num_locations, dtype=np.float32)[checked.astype(np.int64)]
        return checked.astype(np.float32)

    def observation(self, observe: str, slots: Integers | None = None) -> dict[str, npt.NDArray[Any]]:
        """The observations of episodes: a Dict observation with a leading dimension, in fresh arrays.

        Args:
            observe: ``features``, ``index`` or ``glimpsed``.
            slots: of which episodes; by default of all.
        """
        episodes = self.episodes if slots is None else self.episodes.select(torch.from_numpy(slots))
        steps = episodes.steps[:, None]
        common: dict[str, npt.NDArray[Any]] = {
            "hidden": episodes.hidden.cpu().numpy().copy(),
            "word": episodes.last[:, None].copy(),
            "glimpses": episodes.attention_sum / np.maximum(steps, 1).astype(np.float32),
            "time": (steps / self.max_caption_length).astype(np.float32),
        }
        if self.features.masks is not None:
            common["action_mask"] = self.action_masks(slice(None) if slots is None else slots)
        if observe == "index":
            return {"image": episodes.rows[:, None].copy(), **common}
        features = self.features[episodes.rows].astype(np.float32)
        if observe == "glimpsed":
            features *= (episodes.attention_sum > 0)[..., None]
        return {"features": features, **common}

    def snapshot(self) -> Snapshot:
        """A copy of all episodes, for planning."""
        projected = self._projected.clone() if self.attention == "soft" else None
        return Snapshot(self.episodes.copy(), self._rewards.kind, self._rewards.snapshot(), projected)

    def restore(self, state: Snapshot) -> None:
        """Go back to a ``snapshot``.

        Raises:
            ValueError: it is of another number of episodes, other sizes, the other attention or another reward; nothing
                has changed then.
        """
        state.check_fits(self.episodes, self._rewards.kind, self.attention, len(self.features))
        self.episodes = state.episodes.copy()
        self._rewards.restore(state.reward_state)
        if state.projected is not None:
            self._projected = state.projected.clone()


def _check_sizes(
    num_episodes: int, per_image: int, max_caption_length: int, sampling: WordSampling | None, vocab_size: int
) -> None:
    check_count("max_caption_length", max_caption_length, 1)
    if max_caption_length > MAX_CAPTION_LENGTH:
        raise ValueError(f"max_caption_length must be at most {MAX_CAPTION_LENGTH} words, got {max_caption_length}")
    if per_image < 1 or num_episodes % per_image:
        raise ValueError(f"{num_episodes} episodes cannot be {per_image} for every image; make it a divisor")
    if sampling is not None and sampling.method == "top-k" and sampling.top_k > vocab_size:
        raise ValueError(f"top_k {sampling.top_k} is beyond the vocabulary of {vocab_size} words")
