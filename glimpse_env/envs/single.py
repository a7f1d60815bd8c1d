"""The single environment: a caption is an episode, stepped by ``CaptionDynamics`` at B = 1."""

from __future__ import annotations

from typing import Any, SupportsFloat, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded

from glimpse_env.envs.base import GlimpseBase
from glimpse_env.envs.spaces import action_space, observation_space
from glimpse_env.envs.validation import check_generator, check_state, draw_row, requested_row
from glimpse_env.rendering.window import Window
from glimpse_env.rollout.state import Snapshot

Observation = dict[str, npt.NDArray[Any]]


_STATE_TYPES = {"episodes": Snapshot, "glimpses": list, "reward": float | None, "generator": dict}
_SLOT = np.zeros(1, np.int64)  # the only episode of the batch


class GlimpseEnv(GlimpseBase, gym.Env[Observation, Any]):
    """Choose, at every word of an image's caption, where to look; the caption's BLEU is the reward.

    ## Description
    A CNN turns an image into annotation vectors, one for each of L locations on a grid. At every step the agent selects
    one of them (hard attention) or weighs them all (soft attention). A frozen caption decoder, an LSTM, reads the
    resulting context vector and generates the next word. The complete caption is compared with captions that people
    wrote about the image. After Xu et al. 2015, *Show, Attend and Tell*.

    ## Action Space
    `attention="hard"`: `Discrete(L)`, the location to read, row by row from the top left.

    `attention="soft"`: `Box(0, 1, (L,), float32)`, a weight for each location. The environment divides them by their
    sum; all zeros stand for uniform weights.

    ## Observation Space
    A `Dict`:

    | key | type | shape | meaning |
    | --- | --- | --- | --- |
    | `features` | float32 | (L, D) | annotation vectors of the image |
    | `hidden` | float32 | (H,) | the decoder's hidden state |
    | `word` | int64 | (1,) | the last word, `<start>` before the first; `<blank>` after a silent step |
    | `glimpses` | float32 | (L,) | share of past glimpses at each location |
    | `time` | float32 | (1,) | steps so far, divided by T |

    With `observe="index"`, `image` replaces `features`: int64 (1,), a row of `env.unwrapped.features`, a read-only
    table that all environments share. With `observe="glimpsed"`, rows of `features` without a glimpse so far are zero.

    In worlds whose images differ in their number of locations, `action_mask` (`MultiBinary(L)`) says which an image
    has; features of the others are zero.

    ## Starting State
    An image drawn uniformly from the split, or the one named by `reset(options={"image": row})`; an empty caption.

    ## Rewards
    0 at every word but the last, which earns the caption's sentence BLEU-4 (nltk's smoothing method 1) in [0, 1], with
    `<end>` scored as a word; the argument `reward` names others. With `shaped=True` every word earns the change of that
    score; the sum is the same.

    ## Episode End
    `terminated` when the decoder generates `<end>` or after T steps; the caption is complete either way. Never
    `truncated`.

    ## Information
    Always: `action_mask`, int8 (L,): 1 for the locations that the image has. At the end also `caption` (a string),
    `image_id` and the world's metrics, such as `bleu` (float64 (4,), sentence BLEU-1 to BLEU-4 of the words without
    `<end>`).

    ## Arguments
    - `split`: `train`, `val` or `test`.
    - `captioner`: a shipped captioner's name, a file's path, or a `Captioner`; by default the dataset's own.
    - `attention`: `hard` or `soft`.
    - `observe`: `features`, `index` or `glimpsed`.
    - `reward`: `bleu`, `cider`, `rouge-l`, `exact`, `cer`, `wer`, a name given to `glimpse_env.register_reward`, or a
      sum of them such as `bleu + 0.5 * cider`.
    - `shaped`: whether the reward is spread over the words.
    - `decoding`: how the decoder chooses words: `greedy`, `sample`, `top-k` or `top-p`, with `temperature`, `top_k`
      and `top_p`.
    - `max_caption_length`: T, at most 1,000; by default 20, and 34 in `Glimpse/ShapesLarge-v0`: its longest caption.
    - `data_root`: the folder of the dataset; by default `$GLIMPSE_DATA/<dataset>`.
    - `device`: torch device of the decoder.
    - `render_mode`: `None`, `human`, `rgb_array` or `ansi`.

    ## Version History
    - v0: first version.
    """

    _window: Window | None = None

    def _make_spaces(self) -> None:
        self.observation_space = cast("spaces.Space[Observation]", observation_space(self.task))
        self.action_space = action_space(self.task)

    def __getstate__(self) -> dict[str, Any]:
        """Without the window: a copy opens its own."""
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
        row = requested_row(options, len(self.dataset))
        super().reset(seed=seed)
        row = draw_row(self.np_random, len(self.dataset)) if row is None else row
        self._begin_episodes(_SLOT, np.array([row]))
        if self.render_mode == "human":
            self.render()
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Attend, and let the decoder generate one word.

        Args:
            action: a location, or weights over locations.

        Raises:
            InvalidAction: a masked location or one out of range, invalid weights, or a wrong type or shape.
            ResetNeeded: before the first ``reset``, or after the caption's end.
        """
        self._check_started("step")
        if self._dynamics.episodes.ended[0]:
            raise ResetNeeded("the caption is complete; call reset() before the next step()")
        actions = self._as_batch(action)
        uniforms = None
        if self.task.sampling.random:
            self._dynamics.check_actions(actions)  # an invalid action must not advance the generator
            uniforms = [self.np_random.random()]
        weights = None if self.render_mode is None else self._dynamics.weights(actions)  # the step may lift a mask
        transition = self._dynamics.step(actions, uniforms)
        self._record(weights, transition.rewards)
        self._allow_current_locations()
        if self.render_mode == "human":
            self.render()
        return self._observation(), float(transition.rewards[0]), bool(transition.ended[0]), False, self._info()

    def _as_batch(self, action: Any) -> npt.NDArray[Any]:
        try:
            array = np.asarray(action)
        except ValueError as error:
            raise InvalidAction(f"action {action!r} is neither a location nor weights ({error})") from error
        if self.task.attention == "hard" and array.shape == (1,):
            array = array.reshape(())  # Stable-Baselines3 passes a batch of one
        return np.asarray([array] if array.ndim == 0 else array[None])

    def _check_started(self, call: str) -> None:
        if not self._started[0]:
            raise ResetNeeded(f"call reset() before {call}()")

    def _observation(self) -> Observation:
        return {name: values[0] for name, values in self._dynamics.observation(self.task.observe).items()}

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"action_mask": self._dynamics.action_masks()[0]}
        if self._dynamics.episodes.ended[0]:
            info |= {name: values[0] for name, values in self._final_infos(_SLOT).items()}
        return info

    def get_state(self) -> dict[str, Any]:
        """A copy of the episode, its generator included; ``set_state`` goes back to it any number of times."""
        self._check_started("get_state")
        return {
            "episodes": self._dynamics.snapshot(),
            "glimpses": list(self._glimpses[0]),
            "reward": self._returns[0],
            "generator": dict(self.np_random.bit_generator.state),
        }

    def set_state(self, state: dict[str, Any]) -> Observation:
        """Go back to a state of ``get_state``, of this environment or of one made alike; returns its observation.

        Raises:
            ValueError: it is no such state; nothing has changed then.
        """
        check_state(state, _STATE_TYPES)
        check_generator(self.np_random, state["generator"])
        self._dynamics.restore(state["episodes"])
        self._allow_current_locations()
        self._glimpses, self._returns = [list(state["glimpses"])], [state["reward"]]
        self.np_random.bit_generator.state = state["generator"]
        self._started[0] = True
        return self._observation()

    def render(self) -> npt.NDArray[np.uint8] | str | None:
        """Draw the image, the glimpse and the caption so far.

        Returns:
            uint8 (H, W, 3) for ``rgb_array``, a string for ``ansi``, None for ``human``, which shows a window.
        """
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; pass one to gym.make, such as rgb_array")
            return None
        self._check_started("render")
        frame = self._frame(0)
        if self.render_mode != "human":
            return cast("npt.NDArray[np.uint8] | str", frame)
        self._window = self._window or Window(fps=self.metadata["render_fps"])
        self._window.show(frame)
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None
