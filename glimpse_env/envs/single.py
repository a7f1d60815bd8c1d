"""One caption as a Gymnasium episode: the single environment, a door to the dynamics at B = 1.

It speaks Gymnasium's API and draws pictures. What a step does is said in dynamics.py, not here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, SupportsFloat, TypedDict, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded

from glimpse_env.envs.spaces import action_space, observation_space
from glimpse_env.envs.task import TaskView, make_task
from glimpse_env.envs.validation import check_generator, check_state, chosen_row, draw_rows
from glimpse_env.models.captioner import Captioner
from glimpse_env.rendering.frames import render_frame, render_text
from glimpse_env.rendering.window import Window
from glimpse_env.rollout.state import Snapshot
from glimpse_env.rollout.word_sampling import Method

Observation = dict[str, npt.NDArray[Any]]


class EpisodeState(TypedDict):
    """A copy of an unfinished or finished episode, from ``GlimpseEnv.get_state()``."""

    episodes: Snapshot
    glimpses: list[npt.NDArray[np.float32]]
    reward: float | None
    generator: dict[str, Any]


_STATE = {"episodes": Snapshot, "glimpses": list, "reward": float | None, "generator": dict}  # types of its parts


class GlimpseEnv(gym.Env[Observation, Any], TaskView):
    """Choose, at every word of an image's caption, where to look; the caption's BLEU is the reward.

    ## Description
    A CNN turns an image into annotation vectors, one for each of L places on a grid. At every step the agent looks at
    one of them (hard attention) or weighs them all (soft attention); a frozen caption decoder, an LSTM, reads what was
    looked at and says the next word. When the caption is complete it is compared with what people wrote about the
    image. After Xu et al. 2015, *Show, Attend and Tell*.

    ## Action Space
    `attention="hard"`: `Discrete(L)`, the location to read, row by row from the top left.

    `attention="soft"`: `Box(0, 1, (L,), float32)`, a weight for each location. The environment divides them by their
    sum; all zeros mean no preference, that is uniform weights.

    ## Observation Space
    A `Dict`:

    | key | type | shape | meaning |
    | --- | --- | --- | --- |
    | `features` | float32 | (L, D) | annotation vectors of the image |
    | `hidden` | float32 | (H,) | the decoder's hidden state |
    | `word` | int64 | (1,) | the last word, `<start>` before the first |
    | `glimpses` | float32 | (L,) | share of past glimpses at each location |
    | `time` | float32 | (1,) | words said, as a share of T |

    With `observe="index"`, `features` gives way to `image`, int64 (1,): a row of `env.unwrapped.features`, one
    read-only table for all environments. With `observe="glimpsed"`, rows of `features` that have not been looked at
    are zero: only what was glimpsed is known.

    ## Starting State
    An image drawn uniformly from the split, or the one asked for with `reset(options={"image": row})`; no word said.

    ## Rewards
    0 at every word but the last, which earns the caption's sentence BLEU-4 (nltk's smoothing method 1) in [0, 1], with
    `<end>` scored as a word; `reward` names others. With `shaped=True` every word earns the change of that score; the
    sum is the same.

    ## Episode End
    `terminated` when `<end>` is said or after T words; the caption is complete either way. Never `truncated`.

    ## Information
    Always: `action_mask`, int8 (L,), ones (every location may be looked at). At the end also `caption` (a string),
    `bleu` (float64 (4,), sentence BLEU-1 to BLEU-4 of the words without `<end>`) and `image_id`.

    ## Arguments
    - `split`: `train`, `val` or `test`.
    - `captioner`: a shipped captioner's name, a file's path, or a `Captioner`; by default the dataset's own.
    - `attention`: `hard` or `soft`.
    - `observe`: `features`, `index` or `glimpsed`.
    - `reward`: `bleu`, `cider`, `rouge-l`, a name given to `glimpse_env.register_reward`, or a sum of them such as
      `bleu + 0.5 * cider`.
    - `shaped`: whether the reward is spread over the words.
    - `decoding`: how the decoder chooses words: `greedy`, `sample`, `top-k` or `top-p`, with `temperature`, `top_k`
      and `top_p`.
    - `max_caption_length`: T, at most 1,000; by default 20, and 34 in `Glimpse/ShapesLarge-v0`: its longest caption.
    - `data_root`: where the dataset lies; else `$GLIMPSE_DATA/<dataset>`.
    - `device`: torch device of the decoder.
    - `render_mode`: `None`, `human`, `rgb_array` or `ansi`.

    ## Version History
    - v0: first version.
    """

    metadata = {"render_modes": ["human", "rgb_array", "ansi"], "render_fps": 4}

    def __init__(
        self,
        dataset: str = "shapes",
        split: str = "train",
        captioner: str | Path | Captioner | None = None,
        attention: str = "hard",
        observe: str = "features",
        reward: str = "bleu",
        shaped: bool = False,
        decoding: Method = "greedy",
        temperature: float = 1.0,
        top_k: int = 10,
        top_p: float = 0.9,
        max_caption_length: int | None = None,
        data_root: str | Path | None = None,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"unknown render_mode {render_mode!r}; expected None, human, rgb_array or ansi")
        self.render_mode = render_mode
        self.task = make_task(
            dataset=dataset,
            split=split,
            captioner=captioner,
            attention=attention,
            observe=observe,
            reward=reward,
            shaped=shaped,
            decoding=decoding,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_caption_length=max_caption_length,
            data_root=data_root,
            device=device,
        )
        self.observation_space = cast("spaces.Space[Observation]", observation_space(self.task))
        self.action_space = action_space(self.task)
        self._dynamics = self.task.dynamics(1)
        self._started = False
        self._glimpses: list[npt.NDArray[np.float32]] = []  # weights (L,) of every step, for pictures
        self._reward: float | None = None
        self._window: Window | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the window: a copy opens one of its own."""
        return {**self.__dict__, "_window": None}

    @property
    def row(self) -> int:
        """Row of the image that is being captioned."""
        return int(self._dynamics.episodes.rows[0])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a caption.

        Args:
            seed: of the generator that draws images and, unless decoding is greedy, words.
            options: ``{"image": row}`` captions that image of the split.

        Raises:
            ValueError: another option, no such row, or options that are no dict.
        """
        row = chosen_row(options, len(self.dataset))
        super().reset(seed=seed)
        rows = draw_rows([self.np_random.random()], len(self.dataset)) if row is None else [row]
        self._dynamics.begin([0], rows)
        self._started = True
        self._glimpses, self._reward = [], None
        if self.render_mode == "human":
            self.render()
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Look, and let the decoder say one word.

        Args:
            action: a location, or weights over locations.

        Raises:
            InvalidAction: a location out of range, a wrong type, or negative, too large or non-finite weights.
            ResetNeeded: before the first ``reset``, or after the caption's end.
        """
        self._check_started("step")
        if self._dynamics.episodes.ended[0]:
            raise ResetNeeded("the caption is complete; call reset() before the next step()")
        actions = self._batched(action)
        draw = None
        if self.task.sampling.random:
            self._dynamics.check_actions(actions)  # before the generator moves
            draw = [self.np_random.random()]
        transition = self._dynamics.step(actions, draw)
        reward, ended = float(transition.rewards[0]), bool(transition.ended[0])
        if self.render_mode is not None:
            self._glimpses.append(self._dynamics.weights(actions)[0])
        self._reward = (self._reward or 0.0) + reward if self.task.shaped or ended else None
        if self.render_mode == "human":
            self.render()
        return self._observation(), reward, ended, False, self._info()

    def _batched(self, action: Any) -> npt.NDArray[Any]:
        try:
            array = np.asarray(action)
        except ValueError as error:
            raise InvalidAction(f"action {action!r} is neither a location nor weights ({error})") from error
        if self.task.attention == "hard" and array.shape == (1,):
            array = array.reshape(())  # Stable-Baselines3 hands over a batch of one
        return np.asarray([array] if array.ndim == 0 else array[None])

    def _check_started(self, call: str) -> None:
        if not self._started:
            raise ResetNeeded(f"call reset() before {call}()")

    def _observation(self) -> Observation:
        return {name: part[0] for name, part in self._dynamics.observation(self.task.observe).items()}

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"action_mask": np.ones(self._dynamics.num_locations, np.int8)}
        if self._dynamics.episodes.ended[0]:
            info["caption"] = " ".join(self._dynamics.caption(0))
            info["bleu"] = self._dynamics.episodes.bleu[0].copy()
            info["image_id"] = self.dataset.image_id(self.row)
        return info

    def get_state(self) -> EpisodeState:
        """A copy of the episode, its generator included; ``set_state`` goes back to it as often as wanted."""
        self._check_started("get_state")
        return {
            "episodes": self._dynamics.snapshot(),
            "glimpses": list(self._glimpses),
            "reward": self._reward,
            "generator": dict(self.np_random.bit_generator.state),
        }

    def set_state(self, state: EpisodeState) -> Observation:
        """Go back to a state of ``get_state``, of this environment or of one made alike; returns its observation.

        Raises:
            ValueError: it is no such state; nothing has changed then.
        """
        check_state(state, _STATE)
        check_generator(self.np_random, state["generator"])
        self._dynamics.restore(state["episodes"])
        self._glimpses, self._reward = list(state["glimpses"]), state["reward"]
        self.np_random.bit_generator.state = state["generator"]
        self._started = True
        return self._observation()

    def render(self) -> npt.NDArray[np.uint8] | str | None:
        """Draw the image, the glimpse and the caption so far.

        Returns:
            uint8 (H, W, 3) for ``rgb_array``, a string for ``ansi``, None for ``human``, which shows a window.
        """
        if self.render_mode is None:
            gym.logger.warn(
                "render() was called without a render_mode; make the environment with one, such as rgb_array"
            )
            return None
        self._check_started("render")
        grid = self.captioner.encoder.config.grid
        weights = self._glimpses[-1] if self._glimpses else None
        words = self._dynamics.caption(0)
        if self.render_mode == "ansi":
            ended = bool(self._dynamics.episodes.ended[0])
            name = self.dataset.image_id(self.row)
            return render_text(name, grid, weights=weights, words=words, reward=self._reward, ended=ended)
        trail = [int(past.argmax()) for past in self._glimpses[:-1]] if self.task.attention == "hard" else []
        image = self.dataset.image(self.row)
        frame = render_frame(image, grid, weights=weights, trail=trail, words=words, reward=self._reward)
        if self.render_mode == "rgb_array":
            return frame
        self._window = self._window or Window(fps=self.metadata["render_fps"])
        self._window.show(frame)
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None
