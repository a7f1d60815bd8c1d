"""What happens when an agent looks somewhere: the only transition code, batched over B episodes.

It knows features, captioner and reward. It does not know Gymnasium's API: the single and the vector environment are
two doors to it, and evaluation a third.
"""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.core.checks import check_count
from glimpse_env.features.table import FeatureTable
from glimpse_env.metrics.batch_bleu import WholeBleu
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward, RewardFn
from glimpse_env.metrics.running_rewards import Worth, follow
from glimpse_env.models.captioner import Captioner
from glimpse_env.models.frozen_decoder import FrozenDecoder
from glimpse_env.rollout.actions import Checked, check_locations, check_weights
from glimpse_env.rollout.initial_states import StartTable
from glimpse_env.rollout.state import Bools, Episodes, Floats, Integers, Snapshot, Transition
from glimpse_env.rollout.word_sampling import WordSampling

LONGEST = 1000  # words of a caption, at most: an episode keeps room for all of them


class CaptionDynamics:
    """B captions in the making.

    Args:
        captioner: a frozen captioner; its decoder says the words.
        features: annotations of the split.
        references: of the split; None where captions are not judged.
        reward: scores captions; None pays nothing.
        num_episodes: B.
        attention: ``hard``: an action is a location; ``soft``: weights over locations.
        sampling: how words are chosen.
        shaped: pay the change of the caption's worth at every word instead of its worth at the end; the sum is equal.
        max_caption_length: T, words after which a caption is complete even without ``<end>``.
        per_image: K episodes in a row that always show one image, such as the hypotheses of a beam; what depends on
            the image alone is then computed once for them.
        decoder: the captioner's decoder, when it is packed already; it says where and in which type it runs.
        starts: where captions start, when that is known already.
        device: without a decoder, where it runs.
        dtype: without a decoder, the type of its products; see ``FrozenDecoder``.
    """

    def __init__(
        self,
        captioner: Captioner,
        features: FeatureTable,
        references: SplitReferences | None,
        reward: RewardFn | None,
        *,
        num_episodes: int,
        attention: str = "hard",
        sampling: WordSampling | None = None,
        shaped: bool = False,
        max_caption_length: int = 20,
        per_image: int = 1,
        decoder: FrozenDecoder | None = None,
        starts: StartTable | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if attention not in ("hard", "soft"):
            raise ValueError(f"unknown attention {attention!r}; expected 'hard' or 'soft'")
        check_count("max_caption_length", max_caption_length, 1)
        if max_caption_length > LONGEST:
            raise ValueError(f"max_caption_length must be at most {LONGEST} words, got {max_caption_length}")
        if per_image < 1 or num_episodes % per_image:
            raise ValueError(f"{num_episodes} episodes cannot be {per_image} for every image; make it a divisor")
        words = len(captioner.vocabulary)
        if sampling is not None and sampling.method == "top-k" and sampling.top_k > words:
            raise ValueError(f"top_k {sampling.top_k} is beyond the vocabulary of {words} words")
        self.vocabulary = captioner.vocabulary
        self.decoder = decoder or FrozenDecoder(captioner.decoder, self.vocabulary.silent, device, dtype)
        self.device = self.decoder.device
        self._starts = starts or StartTable(self.decoder, features)
        self.features = features
        self.attention = attention
        self.sampling = sampling or WordSampling()
        self.shaped = shaped
        self.max_caption_length = max_caption_length
        self.num_locations = features.shape[1]
        self.per_image = per_image
        self.episodes = self._blank(num_episodes)
        self._slots = np.arange(num_episodes)
        self._worth: Worth | None = None  # what the reward says, of captions as they grow
        self._bleu: WholeBleu | None = None  # what the reports say, and the usual reward, of whole captions
        if references is not None and reward is not None:
            self._bleu = WholeBleu(references.table(4, end=True), self.vocabulary.end, 1, max_caption_length)
            if shaped or type(reward) is not BleuReward or vars(reward) != vars(BleuReward()):
                self._worth = follow(reward, references, num_episodes, max_caption_length, self.device, self._said)
        if attention == "soft":  # what soft weights mix: the projected annotations of every image, (B / K, L, P)
            shape = (num_episodes // per_image, self.num_locations, self.decoder.config.context_dim)
            self._projected = torch.zeros(shape, dtype=self.decoder.dtype, device=self.device)

    @property
    def _kind(self) -> Any:
        """What is paid; states go back only to where the same is."""
        return (self._bleu is not None, self.shaped, None if self._worth is None else self._worth.kind)

    def _said(self, slot: int) -> tuple[int, list[str], bool]:
        """Row, words and whether ``<end>`` was said; a method, so that a copy of the dynamics asks the copy."""
        return int(self.episodes.rows[slot]), self.caption(slot), self.said_end(slot)

    def _blank(self, count: int) -> Episodes:
        hidden = self.decoder.config.hidden_dim
        return Episodes(
            hidden=torch.zeros(count, hidden, device=self.device),
            cell=torch.zeros(count, hidden, device=self.device),
            rows=np.zeros(count, np.int64),
            words=np.full((count, self.max_caption_length), self.vocabulary.pad),
            last=np.full(count, self.vocabulary.start),
            lengths=np.zeros(count, np.int64),
            looked=np.zeros((count, self.num_locations), np.float32),
            worth=np.zeros(count),
            bleu=np.zeros((count, 4)),
            ended=np.ones(count, bool),
        )

    @property
    def num_episodes(self) -> int:
        """B."""
        return len(self._slots)

    def listen_to(self, decoder: FrozenDecoder) -> None:
        """Let another decoder, such as this one trained further, say the words; begin all captions anew after it."""
        self.decoder = decoder
        self._starts = StartTable(decoder, self.features)

    @torch.inference_mode()
    def begin(self, slots: npt.ArrayLike, rows: npt.ArrayLike) -> None:
        """Start new captions.

        Args:
            slots: the episodes to start anew, (B',); with several episodes an image, all of an image in a row.
            rows: the image of each, (B',).
        """
        starting, images = np.asarray(slots), np.asarray(rows)
        shown = images[:: self.per_image]
        self.features.keep(shown, self.device)
        if self._bleu is not None:  # first: an image without references stops everything
            self._bleu.table.prepare(images)
        if self._worth is not None:
            self._worth.begin(starting, images)
        now = self.episodes
        now.rows[starting] = images
        now.words[starting] = self.vocabulary.pad
        now.last[starting] = self.vocabulary.start
        now.lengths[starting] = 0
        now.looked[starting] = 0
        now.worth[starting] = 0
        now.bleu[starting] = 0
        now.ended[starting] = False
        places = torch.from_numpy(starting).to(self.device)
        if self.decoder.config.init == "mean":
            for kept, new in zip(now.state, self._starts[shown], strict=True):
                kept.index_copy_(0, places, new.repeat_interleave(self.per_image, 0))
        else:
            for kept in now.state:
                kept.index_fill_(0, places, 0)
        if self.attention == "soft":
            annotations = torch.from_numpy(self.features[shown]).to(self.device)  # (B' / K, L, D)
            self._projected[places[:: self.per_image] // self.per_image] = self.decoder.project(annotations)

    def check_actions(self, actions: npt.ArrayLike) -> Checked:
        """The actions of B episodes as locations (B,), int64, or as weights (B, L), float32, that sum to one.

        Raises:
            InvalidAction: a location out of range, a wrong type or shape, or negative, too large or non-finite weights.
        """
        check = check_locations if self.attention == "hard" else check_weights
        return check(actions, self.num_episodes, self.num_locations)

    def step(
        self, actions: npt.ArrayLike, uniforms: npt.ArrayLike | None = None, *, keep_ended: bool = True
    ) -> Transition:
        """Look, and say one word, in every episode that has not ended.

        Args:
            actions: locations (B,) or weights (B, L), as ``check_actions`` takes them.
            uniforms: (B,) numbers in [0, 1), when words are drawn.
            keep_ended: as ``look`` takes it.

        Raises:
            InvalidAction: as ``check_actions``; nothing has changed then.
        """
        logits = self.look(actions, keep_ended=keep_ended)
        draws = None if uniforms is None else torch.as_tensor(uniforms, dtype=torch.float64, device=self.device)
        return self.say(self.sampling.choose(logits, draws))

    @torch.inference_mode()
    def look(self, actions: npt.ArrayLike, *, keep_ended: bool = True) -> Tensor:
        """The first half of a step: look, in every episode that has not ended.

        Args:
            actions: as ``step`` takes them.
            keep_ended: whether the decoder's states of the episodes that have ended stay as they are; without, these
                must be begun anew before anyone asks for them, which costs less.

        Returns:
            Logits of the next word, (B, V), float32, −∞ for words that are never said; the next call overwrites them.

        Raises:
            InvalidAction: as ``check_actions``; nothing has changed then.
        """
        checked = self.check_actions(actions)
        now = self.episodes
        last = torch.from_numpy(now.last).to(self.device)
        logits, state = self.decoder.say(self._read(checked), last, now.state)
        going = ~now.ended
        if keep_ended and now.ended.any():
            still = torch.from_numpy(now.ended.nonzero()[0]).to(self.device)
            for new, old in zip(state, now.state, strict=True):
                new.index_copy_(0, still, old.index_select(0, still))
        self.episodes = now._replace(hidden=state.hidden, cell=state.cell)
        if self.attention == "hard":
            now.looked.reshape(-1)[self._slots * self.num_locations + checked] += going  # twice as fast as two indices
        else:
            now.looked[...] += checked * going[:, None]
        return logits

    @torch.inference_mode()
    def say(self, words: Tensor) -> Transition:
        """The second half of a step: say a word, in every episode that has not ended.

        Args:
            words: ids, (B,), int64.
        """
        now = self.episodes
        alive = ~now.ended
        spoken = words.cpu().numpy()
        everyone = bool(alive.all())
        slots = self._slots
        if not everyone:
            spoken = np.where(alive, spoken, self.vocabulary.pad)
            slots = alive.nonzero()[0]
        now.words[slots, now.lengths[slots]] = spoken[slots]
        np.copyto(now.last, spoken, where=alive)
        now.lengths[...] += alive
        now.ended[...] |= (spoken == self.vocabulary.end) | (now.lengths == self.max_caption_length)
        if self._worth is not None:
            self._worth.append(words.to(self.device), None if everyone else torch.from_numpy(alive).to(self.device))
        return Transition(spoken, self._pay(alive), now.ended.copy())

    @torch.inference_mode()
    def fork(self, parents: Tensor) -> None:
        """Let episode b go on from where episode ``parents[b]`` stands, between two steps or their halves.

        Args:
            parents: (B,), int64; with several episodes an image (``per_image``), of the same image.
        """
        self.episodes = self.episodes.picked(parents)
        if self.attention == "soft" and self.per_image == 1:
            self._projected = self._projected[parents.to(self.device)]
        if self._worth is not None:
            self._worth.fork(parents.to(self.device))

    def _read(self, actions: Checked) -> Tensor:
        """The projected context that is looked at, (B, P): a_i (SAT eq. 9), or Σ α_i a_i (SAT eq. 13)."""
        if self.attention == "hard":
            return self.decoder.project(self.features.glimpsed(self.episodes.rows, actions, self.device))
        grouped = torch.from_numpy(actions).to(self.device).reshape(-1, self.per_image, self.num_locations)
        return (grouped.to(self._projected.dtype) @ self._projected).flatten(0, 1)

    def _pay(self, alive: Bools) -> Floats:
        now = self.episodes
        rewards = np.zeros(self.num_episodes)
        finished = alive & now.ended
        slots = finished.nonzero()[0]
        if self._bleu is not None and slots.size:
            with_end, now.bleu[slots] = self._bleu.scores(now.rows[slots], now.words[slots], now.lengths[slots])
            rewards[slots] = with_end[:, -1]
        due = alive if self.shaped else finished
        if self._worth is not None and due.any():
            worth = self._worth.scores(torch.from_numpy(due).to(self.device)).cpu().numpy()
            rewards[due] = (worth - now.worth)[due]
            if self.shaped:
                now.worth[due] = worth[due]
        return rewards

    def caption(self, slot: int) -> list[str]:
        """Words of an episode's caption so far, without ``<end>``."""
        return self.captions(np.array([slot]))[0]

    def captions(self, slots: Integers) -> list[list[str]]:
        """``caption`` of some episodes, (B',)."""
        word_of, now = self.vocabulary.words.__getitem__, self.episodes
        lengths = (now.lengths - (now.last == self.vocabulary.end))[slots]
        said = zip(now.words[slots].tolist(), lengths.tolist(), strict=True)
        return [list(map(word_of, ids[:length])) for ids, length in said]

    def said_end(self, slot: int) -> bool:
        """Whether an episode's last word is ``<end>``."""
        return bool(self.episodes.last[slot] == self.vocabulary.end)

    def weights(self, actions: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Actions of either kind as weights over locations, (B, L), float32, each row with sum one.

        Raises:
            InvalidAction: as ``check_actions``.
        """
        checked = self.check_actions(actions)
        if self.attention == "hard":
            return np.eye(self.num_locations, dtype=np.float32)[checked.astype(np.int64)]
        return checked.astype(np.float32)

    def observation(self, observe: str, slots: Integers | None = None) -> dict[str, npt.NDArray[Any]]:
        """What the agents of episodes see: a Dict observation with a leading dimension, in fresh arrays.

        Args:
            observe: ``features``, ``index`` or ``glimpsed``.
            slots: of which episodes; by default of all.
        """
        now = self.episodes if slots is None else self.episodes.picked(torch.from_numpy(slots))
        lengths = now.lengths[:, None]
        seen: dict[str, npt.NDArray[Any]] = {
            "hidden": now.hidden.cpu().numpy().copy(),
            "word": now.last[:, None].copy(),
            "glimpses": now.looked / np.maximum(lengths, 1).astype(np.float32),
            "time": (lengths / self.max_caption_length).astype(np.float32),
        }
        if observe == "index":
            return {"image": now.rows[:, None].copy(), **seen}
        features = self.features[now.rows].astype(np.float32)
        if observe == "glimpsed":
            features *= (now.looked > 0)[..., None]
        return {"features": features, **seen}

    def snapshot(self) -> Snapshot:
        """A copy of all episodes, for planning."""
        projected = self._projected.clone() if self.attention == "soft" else None
        worth = None if self._worth is None else self._worth.snapshot()
        return Snapshot(self.episodes.copy(), self._kind, worth, projected)

    def restore(self, state: Snapshot) -> None:
        """Go back to a ``snapshot``.

        Raises:
            ValueError: it is of another number of episodes, other sizes, the other attention or another reward; nothing
                has changed then.
        """
        if not isinstance(state.episodes, Episodes):
            raise ValueError(f"state is not one of get_state: {reprlib.repr(state.episodes)} are no episodes")
        if state.reward != self._kind:
            raise ValueError("state is of captions with another reward; take it from an environment made alike")
        if (state.projected is None) != (self.attention == "hard"):
            raise ValueError(f"state is not of {self.attention} attention; take it from an environment made alike")
        for name in Episodes._fields:
            kept, new = (tuple(getattr(one, name).shape) for one in (self.episodes, state.episodes))
            if kept != new:
                raise ValueError(f"state holds {name} of shape {new}, expected {kept}")
        rows = state.episodes.rows
        if not ((rows >= 0) & (rows < len(self.features))).all():
            raise ValueError("state is of images that are not in this split; take it from an environment made alike")
        self.episodes = state.episodes.copy()
        if self._worth is not None:
            self._worth.restore(state.worth)
        if state.projected is not None:
            self._projected = state.projected.clone()
