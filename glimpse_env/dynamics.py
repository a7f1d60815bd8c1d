"""What happens when an agent looks somewhere: the only transition code, batched over B episodes.

It knows features, captioner and reward. It does not know Gymnasium's API: the single and the vector environment are
two doors to it, and evaluation a third.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.actions import Checked, check_locations, check_weights
from glimpse_env.captioner import Captioner
from glimpse_env.decoder import DecoderState
from glimpse_env.features import FeatureTable
from glimpse_env.inference import FrozenDecoder
from glimpse_env.reward import BleuReward, RewardFn
from glimpse_env.sampling import WordSampling
from glimpse_env.worth import BleuWorth, ReferenceSource, Worth, follow


class Episodes(NamedTuple):
    """Everything that changes while B captions are made.

    Attributes:
        rows: image of each episode, (B,), int64.
        hidden: (B, H), float32.
        cell: (B, H), float32.
        words: words said so far, (B, T), int64, ``<pad>`` after the last.
        lengths: number of words said, ``<end>`` included, (B,), int64.
        looked: summed weights of past glimpses, (B, L), float32.
        worth: reward function's value of the caption so far, (B,), float64; only kept when rewards are shaped.
        ended: (B,), bool.
    """

    rows: Tensor
    hidden: Tensor
    cell: Tensor
    words: Tensor
    lengths: Tensor
    looked: Tensor
    worth: Tensor
    ended: Tensor


class Snapshot(NamedTuple):
    """All that ``CaptionDynamics.restore`` needs."""

    episodes: Episodes
    judges: list[tuple[Any, Any]]
    projected: Tensor | None


class Transition(NamedTuple):
    """What one step brought.

    Attributes:
        words: the words said, (B,), int64; ``<pad>`` where the episode had ended before.
        rewards: (B,), float64; 0 where the episode had ended before.
        ended: which captions are now complete, (B,), bool.
    """

    words: Tensor
    rewards: Tensor
    ended: Tensor


class CaptionDynamics:
    """B captions in the making.

    Args:
        captioner: a frozen captioner; its decoder says the words.
        features: annotations of the split.
        dataset: gives the reference captions of a row; None where captions are not judged.
        reward: scores captions; None pays nothing.
        num_episodes: B.
        attention: ``hard``: an action is a location; ``soft``: weights over locations.
        sampling: how words are chosen.
        shaped: pay the change of the caption's worth at every word instead of its worth at the end; the sum is equal.
        max_caption_length: T, words after which a caption is complete even without ``<end>``.
        per_image: K episodes in a row that always show one image, such as the hypotheses of a beam; what depends on
            the image alone is then computed once for them.
        device: where the decoder runs.
        dtype: of the decoder's products; see ``FrozenDecoder``.
    """

    def __init__(
        self,
        captioner: Captioner,
        features: FeatureTable,
        dataset: ReferenceSource | None,
        reward: RewardFn | None,
        *,
        num_episodes: int,
        attention: str = "hard",
        sampling: WordSampling | None = None,
        shaped: bool = False,
        max_caption_length: int = 20,
        per_image: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if attention not in ("hard", "soft"):
            raise ValueError(f"unknown attention {attention!r}; expected 'hard' or 'soft'")
        if max_caption_length < 1:
            raise ValueError(f"max_caption_length must be at least 1 word, got {max_caption_length}")
        if per_image < 1 or num_episodes % per_image:
            raise ValueError(f"{num_episodes} episodes cannot be {per_image} for every image; make it a divisor")
        words = len(captioner.vocabulary)
        if sampling is not None and sampling.method == "top-k" and sampling.top_k > words:
            raise ValueError(f"top_k {sampling.top_k} is beyond the vocabulary of {words} words")
        self.device = torch.device(device)
        self.vocabulary = captioner.vocabulary
        silent = (self.vocabulary.pad, self.vocabulary.start, self.vocabulary.unk)
        self.decoder = FrozenDecoder(captioner.decoder, silent, self.device, dtype)
        self.features = features
        self.attention = attention
        self.sampling = sampling or WordSampling()
        self.shaped = shaped
        self.max_caption_length = max_caption_length
        self.num_locations = features.shape[1]
        self.per_image = per_image
        self.episodes = self._blank(num_episodes)
        self._worth: Worth | None = None  # what the reward says
        self._bleu: BleuWorth | None = None  # what the reports say: without <end>, whatever the reward
        if dataset is not None and reward is not None:
            followed = (dataset, len(features), self.vocabulary, num_episodes, max_caption_length, self.device)
            self._worth = follow(reward, *followed, self._said)
            self._bleu = BleuWorth(BleuReward(score_end=False), *followed)
        if attention == "soft":  # what soft weights mix: the projected annotations of every image, (B / K, L, P)
            shape = (num_episodes // per_image, self.num_locations, self.decoder.config.context_dim)
            self._projected = torch.zeros(shape, dtype=dtype, device=self.device)

    @property
    def _judges(self) -> tuple[Worth, ...]:
        return () if self._worth is None or self._bleu is None else (self._worth, self._bleu)

    def _said(self, slot: int) -> tuple[int, list[str], bool]:
        """Row, words and whether ``<end>`` was said; a method, so that a copy of the dynamics asks the copy."""
        return int(self.episodes.rows[slot]), self.caption(slot), self.said_end(slot)

    def _blank(self, count: int) -> Episodes:
        hidden = self.decoder.config.hidden_dim
        return Episodes(
            rows=torch.zeros(count, dtype=torch.int64),
            hidden=torch.zeros(count, hidden, device=self.device),
            cell=torch.zeros(count, hidden, device=self.device),
            words=torch.full((count, self.max_caption_length), self.vocabulary.pad),
            lengths=torch.zeros(count, dtype=torch.int64),
            looked=torch.zeros(count, self.num_locations),
            worth=torch.zeros(count, dtype=torch.float64),
            ended=torch.ones(count, dtype=torch.bool),
        )

    @property
    def num_episodes(self) -> int:
        """B."""
        return len(self.episodes.rows)

    @torch.inference_mode()
    def begin(self, slots: npt.ArrayLike, rows: npt.ArrayLike) -> None:
        """Start new captions.

        Args:
            slots: the episodes to start anew, (B',); with several episodes an image, all of an image in a row.
            rows: the image of each, (B',).
        """
        starting, images = np.asarray(slots), np.asarray(rows)
        shown = images[:: self.per_image]
        annotations = torch.from_numpy(self.features[shown]).to(self.device).float()  # (B' / K, L, D)
        state = self.decoder.init_state(annotations)
        fresh = self._blank(len(starting))._replace(
            rows=torch.from_numpy(images),
            hidden=state.hidden.repeat_interleave(self.per_image, 0),
            cell=state.cell.repeat_interleave(self.per_image, 0),
            ended=torch.zeros(len(starting), dtype=torch.bool),
        )
        places = torch.from_numpy(starting)
        for kept, new in zip(self.episodes, fresh, strict=True):
            kept[places.to(kept.device)] = new
        if self.attention == "soft":
            groups = places[:: self.per_image].to(self.device) // self.per_image
            self._projected[groups] = self.decoder.project(annotations)
        for judge in self._judges:
            judge.begin(starting, images)

    def check_actions(self, actions: npt.ArrayLike) -> Checked:
        """The actions of B episodes as locations (B,), int64, or as weights (B, L), float32, that sum to one.

        Raises:
            InvalidAction: a location out of range, a wrong type or shape, or negative, too large or non-finite weights.
        """
        check = check_locations if self.attention == "hard" else check_weights
        return check(actions, self.num_episodes, self.num_locations)

    def step(self, actions: npt.ArrayLike, uniforms: npt.ArrayLike | None = None) -> Transition:
        """Look, and say one word, in every episode that has not ended.

        Args:
            actions: locations (B,) or weights (B, L), as ``check_actions`` takes them.
            uniforms: (B,) numbers in [0, 1), when words are drawn.

        Raises:
            InvalidAction: as ``check_actions``; nothing has changed then.
        """
        logits = self.look(actions)
        draws = None if uniforms is None else torch.as_tensor(uniforms, dtype=torch.float64, device=self.device)
        return self.say(self.sampling.choose(logits, draws))

    @torch.inference_mode()
    def look(self, actions: npt.ArrayLike) -> Tensor:
        """The first half of a step: look, in every episode that has not ended.

        Args:
            actions: as ``step`` takes them.

        Returns:
            Logits of the next word, (B, V), float32, −∞ for words that are never said.

        Raises:
            InvalidAction: as ``check_actions``; nothing has changed then.
        """
        checked = self.check_actions(actions)
        now = self.episodes
        projected = self._read(checked)  # (B, P)
        logits, state = self.decoder.say(
            projected, self.last_words().to(self.device), DecoderState(now.hidden, now.cell)
        )
        going = ~now.ended
        if bool(now.ended.any()):
            here = going.unsqueeze(1).to(self.device)
            state = DecoderState(
                *(torch.where(here, new, old) for new, old in zip(state, (now.hidden, now.cell), strict=True))
            )
        now.hidden.copy_(state.hidden)
        now.cell.copy_(state.cell)
        if self.attention == "hard":
            now.looked.scatter_add_(1, torch.from_numpy(checked).unsqueeze(1), going.unsqueeze(1).float())
        else:
            now.looked.add_(torch.from_numpy(checked) * going.unsqueeze(1))
        return logits

    @torch.inference_mode()
    def say(self, words: Tensor) -> Transition:
        """The second half of a step: say a word, in every episode that has not ended.

        Args:
            words: ids, (B,), int64.
        """
        now = self.episodes
        alive = ~now.ended
        words = torch.where(alive, words.cpu(), self.vocabulary.pad)
        living = alive.nonzero().squeeze(1)
        now.words[living, now.lengths[living]] = words[living]
        now.lengths.add_(alive)
        now.ended.logical_or_((words == self.vocabulary.end) | (now.lengths == self.max_caption_length))
        for judge in self._judges:
            judge.append(words.to(self.device), alive.to(self.device))
        return Transition(words, self._pay(alive), now.ended.clone())

    def fork(self, parents: Tensor) -> None:
        """Let episode b go on from where episode ``parents[b]`` stands, between two steps or their halves.

        Args:
            parents: (B,), int64; with several episodes an image, of the same image.
        """
        self.episodes = Episodes(*(part[parents.to(part.device)] for part in self.episodes))
        for judge in self._judges:
            judge.fork(parents.to(self.device))

    def _read(self, actions: Checked) -> Tensor:
        """The projected context that is looked at, (B, P)."""
        if self.attention == "hard":
            seen = torch.from_numpy(self.features.at(self.episodes.rows.numpy(), actions))
            return self.decoder.project(seen.to(self.device).float())
        grouped = torch.from_numpy(actions).to(self.device).reshape(-1, self.per_image, self.num_locations)
        return (grouped.to(self._projected.dtype) @ self._projected).flatten(0, 1)

    def _pay(self, alive: Tensor) -> Tensor:
        now = self.episodes
        rewards = torch.zeros(self.num_episodes, dtype=torch.float64)
        due = alive if self.shaped else alive & now.ended
        if self._worth is None or not due.any():
            return rewards
        worth = self._worth.scores(due.to(self.device)).cpu()
        rewards = torch.where(due, worth - now.worth, 0.0)
        if self.shaped:
            now.worth.copy_(torch.where(due, worth, now.worth))
        return rewards

    def caption(self, slot: int) -> list[str]:
        """Words of an episode's caption so far, without ``<end>``."""
        said = self.episodes.words[slot, : int(self.episodes.lengths[slot])].tolist()
        return self.vocabulary.decode(word for word in said if word != self.vocabulary.end)

    def bleu(self, slots: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Sentence BLEU-1 to BLEU-4 (method 1) of captions so far, without ``<end>``, (B', 4).

        Args:
            slots: which episodes, (B',).
        """
        if self._bleu is None:
            raise ValueError("these captions are not judged; make the dynamics with a dataset and a reward")
        return self._bleu.orders(torch.as_tensor(np.asarray(slots), device=self.device)).cpu().numpy()

    def said_end(self, slot: int) -> bool:
        """Whether an episode's last word is ``<end>``."""
        length = int(self.episodes.lengths[slot])
        return length > 0 and int(self.episodes.words[slot, length - 1]) == self.vocabulary.end

    def weights(self, actions: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Actions of either kind as weights over locations, (B, L), float32, each row with sum one.

        Raises:
            InvalidAction: as ``check_actions``.
        """
        checked = self.check_actions(actions)
        if self.attention == "hard":
            return np.eye(self.num_locations, dtype=np.float32)[checked.astype(np.int64)]
        return checked.astype(np.float32)

    def last_words(self) -> Tensor:
        """Id of each episode's last word, ``<start>`` before the first: (B,), int64."""
        now = self.episodes
        said = now.words.gather(1, (now.lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        return torch.where(now.lengths > 0, said, self.vocabulary.start)

    def observation(self, observe: str) -> dict[str, npt.NDArray[Any]]:
        """What the agents of B episodes see: a Dict observation with a leading B, in fresh arrays.

        Args:
            observe: ``features``, ``index`` or ``glimpsed``.
        """
        now = self.episodes
        steps = now.lengths.clamp(min=1).unsqueeze(1)
        seen: dict[str, npt.NDArray[Any]] = {
            "hidden": now.hidden.cpu().numpy().copy(),
            "word": self.last_words().unsqueeze(1).numpy(),
            "glimpses": (now.looked / steps).numpy(),
            "time": (now.lengths.unsqueeze(1) / self.max_caption_length).float().numpy(),
        }
        if observe == "index":
            return {"image": now.rows.unsqueeze(1).numpy().copy(), **seen}
        features = self.features[now.rows.numpy()].astype(np.float32)
        if observe == "glimpsed":
            features *= (now.looked > 0).unsqueeze(-1).numpy()
        return {"features": features, **seen}

    def snapshot(self) -> Snapshot:
        """A copy of all episodes, for planning."""
        projected = self._projected.clone() if self.attention == "soft" else None
        return Snapshot(
            Episodes(*(part.clone() for part in self.episodes)),
            [(judge.kind, judge.snapshot()) for judge in self._judges],
            projected,
        )

    def restore(self, state: Snapshot) -> None:
        """Go back to a ``snapshot``.

        Raises:
            ValueError: it is of another number of episodes, other sizes, the other attention or another reward; nothing
                has changed then.
        """
        if [kind for kind, _ in state.judges] != [judge.kind for judge in self._judges]:
            raise ValueError("state is of captions with another reward; take it from an environment made alike")
        if (state.projected is None) != (self.attention == "hard"):
            raise ValueError(f"state is not of {self.attention} attention; take it from an environment made alike")
        for name, kept, new in zip(Episodes._fields, self.episodes, state.episodes, strict=True):
            if kept.shape != new.shape:
                raise ValueError(f"state holds {name} of shape {tuple(new.shape)}, expected {tuple(kept.shape)}")
        self.episodes = Episodes(*(part.clone() for part in state.episodes))
        for judge, (_, counted) in zip(self._judges, state.judges, strict=True):
            judge.restore(counted)
        if state.projected is not None:
            self._projected = state.projected.clone()
