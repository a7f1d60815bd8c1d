"""What happens when an agent looks somewhere: the only transition code, batched over B episodes.

It knows features, captioner and reward. It does not know Gymnasium's API: the single and the vector environment are
two doors to it, and evaluation a third.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import InvalidAction
from torch import Tensor

from glimpse_env.captioner import Captioner
from glimpse_env.decoder import DecoderState
from glimpse_env.features import FeatureTable
from glimpse_env.reward import RewardFn
from glimpse_env.sampling import WordSampling

WEIGHT_TOLERANCE = 1e-5  # a softmax in float32 may sum to a little over one


class References(Protocol):
    """Where the reference captions of a row come from; every dataset is one."""

    def references(self, row: int) -> list[list[str]]:
        """Reference captions of ``row`` as lists of words."""
        ...


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
        dataset: gives the reference captions of a row.
        reward: scores captions.
        num_episodes: B.
        attention: ``hard``: an action is a location; ``soft``: weights over locations.
        sampling: how words are chosen.
        shaped: pay the change of the caption's worth at every word instead of its worth at the end; the sum is equal.
        max_caption_length: T, words after which a caption is complete even without ``<end>``.
        device: where the decoder runs.
    """

    def __init__(
        self,
        captioner: Captioner,
        features: FeatureTable,
        dataset: References,
        reward: RewardFn,
        *,
        num_episodes: int,
        attention: str = "hard",
        sampling: WordSampling | None = None,
        shaped: bool = False,
        max_caption_length: int = 20,
        device: torch.device | str = "cpu",
    ) -> None:
        if attention not in ("hard", "soft"):
            raise ValueError(f"unknown attention {attention!r}; expected 'hard' or 'soft'")
        if max_caption_length < 1:
            raise ValueError(f"max_caption_length must be at least 1 word, got {max_caption_length}")
        self.device = torch.device(device)
        self.decoder = captioner.decoder.to(self.device).eval()
        self.vocabulary = captioner.vocabulary
        self.features = features
        self.dataset = dataset
        self.reward = reward
        self.attention = attention
        self.sampling = sampling or WordSampling()
        self.shaped = shaped
        self.max_caption_length = max_caption_length
        self.num_locations = features.shape[1]
        silent = torch.zeros(len(self.vocabulary), device=self.device)
        silent[[self.vocabulary.pad, self.vocabulary.start, self.vocabulary.unk]] = -torch.inf
        self._silent = silent  # added to logits: these are never said
        self.episodes = self._blank(num_episodes)

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
            slots: the episodes to start anew, (B',).
            rows: the image of each, (B',).
        """
        places, images = torch.as_tensor(np.asarray(slots)), np.asarray(rows)
        annotations = torch.from_numpy(self.features[images]).to(self.device).float()  # (B', L, D)
        state = self.decoder.init_state(annotations)
        fresh = self._blank(len(places))._replace(
            rows=torch.as_tensor(images),
            hidden=state.hidden,
            cell=state.cell,
            ended=torch.zeros(len(places), dtype=torch.bool),
        )
        for kept, new in zip(self.episodes, fresh, strict=True):
            kept[places.to(kept.device)] = new

    def check_actions(self, actions: npt.ArrayLike) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
        """The actions of B episodes as locations (B,), int64, or as weights (B, L), float32, that sum to one.

        Raises:
            InvalidAction: a location out of range, a wrong type or shape, or negative, too large or non-finite weights.
        """
        return self._check_locations(actions) if self.attention == "hard" else self._check_weights(actions)

    def _check_locations(self, actions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        try:
            locations = np.asarray(actions)
        except ValueError as error:
            raise InvalidAction(f"action {actions!r} is not a location; expected an integer ({error})") from error
        if not np.issubdtype(locations.dtype, np.integer):
            raise InvalidAction(
                f"action {actions!r} is not a location; expected an integer in [0, {self.num_locations})"
            )
        if locations.shape != (self.num_episodes,):
            raise InvalidAction(
                f"expected one location per episode, shape ({self.num_episodes},), got {locations.shape}"
            )
        outside = locations[(locations < 0) | (locations >= self.num_locations)]
        if outside.size:
            raise InvalidAction(
                f"location {outside[0]} does not exist; expected an integer in [0, {self.num_locations})"
            )
        return locations.astype(np.int64)

    def _check_weights(self, actions: npt.ArrayLike) -> npt.NDArray[np.float32]:
        try:
            given = np.asarray(actions)
        except ValueError as error:
            raise InvalidAction(f"action {actions!r} is not an array of weights ({error})") from error
        if given.dtype.kind not in "buif":  # numpy would read strings, None and complex numbers as floats
            raise InvalidAction(f"action {actions!r} is not an array of weights; expected real numbers in [0, 1]")
        with np.errstate(over="ignore"):  # what is too large for float32 is named below
            weights = given.astype(np.float32)
        expected = (self.num_episodes, self.num_locations)
        if weights.shape != expected:
            raise InvalidAction(f"expected weights over locations of shape {expected}, got {weights.shape}")
        wrong = weights[~((weights >= 0) & (weights <= 1 + WEIGHT_TOLERANCE))]
        if wrong.size:
            raise InvalidAction(f"weight {wrong[0]} is not in [0, 1]; weights over locations must be finite and there")
        weights[weights.sum(1) == 0] = 1.0  # no preference
        weights /= weights.sum(1, keepdims=True)
        return weights

    @torch.inference_mode()
    def step(self, actions: npt.ArrayLike, uniforms: npt.ArrayLike | None = None) -> Transition:
        """Look, and say one word, in every episode that has not ended.

        Args:
            actions: locations (B,) or weights (B, L), as ``check_actions`` takes them.
            uniforms: (B,) numbers in [0, 1), when words are drawn.

        Raises:
            InvalidAction: as ``check_actions``; nothing has changed then.
        """
        checked = self.check_actions(actions)
        now = self.episodes
        alive = ~now.ended
        weights, context = self._look(checked)  # (B, L), (B, D)
        last = self.last_words().to(self.device)
        logits, state = self.decoder.step(context, last, DecoderState(now.hidden, now.cell))
        draws = None if uniforms is None else torch.as_tensor(uniforms, dtype=torch.float64, device=self.device)
        words = self.sampling.choose(logits + self._silent, draws).cpu()
        words = torch.where(alive, words, self.vocabulary.pad)

        going = alive.to(self.device).unsqueeze(1)
        now.hidden.copy_(torch.where(going, state.hidden, now.hidden))
        now.cell.copy_(torch.where(going, state.cell, now.cell))
        now.looked.add_(torch.where(alive.unsqueeze(1), weights, 0))
        living = alive.nonzero().squeeze(1)
        now.words[living, now.lengths[living]] = words[living]
        now.lengths.add_(alive)
        now.ended.logical_or_((words == self.vocabulary.end) | (now.lengths == self.max_caption_length))
        return Transition(words, self._pay(alive), now.ended.clone())

    def _look(self, actions: npt.NDArray[np.int64] | npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        rows = self.episodes.rows.numpy()
        if self.attention == "hard":
            locations = torch.from_numpy(actions)
            weights = torch.nn.functional.one_hot(locations, self.num_locations).float()
            return weights, torch.from_numpy(self.features.at(rows, actions)).to(self.device).float()
        weights = torch.from_numpy(actions)
        annotations = torch.from_numpy(self.features[rows]).to(self.device).float()  # (B, L, D)
        return weights, torch.einsum("bl,bld->bd", weights.to(self.device), annotations)

    def _pay(self, alive: Tensor) -> Tensor:
        now = self.episodes
        rewards = torch.zeros(self.num_episodes, dtype=torch.float64)
        due = alive if self.shaped else alive & now.ended
        for slot in due.nonzero().squeeze(1).tolist():
            references = self.dataset.references(int(now.rows[slot]))
            worth = self.reward(references, self.caption(slot), self.said_end(slot))
            rewards[slot] = worth - now.worth[slot]
            if self.shaped:
                now.worth[slot] = worth
        return rewards

    def caption(self, slot: int) -> list[str]:
        """Words of an episode's caption so far, without ``<end>``."""
        said = self.episodes.words[slot, : int(self.episodes.lengths[slot])].tolist()
        return self.vocabulary.decode(word for word in said if word != self.vocabulary.end)

    def said_end(self, slot: int) -> bool:
        """Whether an episode's last word is ``<end>``."""
        return bool(self.last_words()[slot] == self.vocabulary.end)

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

    def snapshot(self) -> Episodes:
        """A copy of all episodes, for planning."""
        return Episodes(*(part.clone() for part in self.episodes))

    def restore(self, episodes: Episodes) -> None:
        """Go back to a ``snapshot``.

        Raises:
            ValueError: it is of another number of episodes or other sizes.
        """
        for name, kept, new in zip(Episodes._fields, self.episodes, episodes, strict=True):
            if kept.shape != new.shape:
                raise ValueError(f"state holds {name} of shape {tuple(new.shape)}, expected {tuple(kept.shape)}")
        self.episodes = Episodes(*(part.clone() for part in episodes))
