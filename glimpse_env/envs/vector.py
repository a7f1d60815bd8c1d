"""The vector environment: N caption episodes behind Gymnasium's vector API, one decoder step for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from glimpse_env.envs.base import GlimpseBase
from glimpse_env.envs.single import Observation
from glimpse_env.envs.spaces import action_space, observation_space
from glimpse_env.envs.validation import check_generator, check_seeds, check_state, draw_row, read_options, requested_row
from glimpse_env.rollout.state import Snapshot

Mask = npt.NDArray[np.bool_]
StepResult = tuple[Observation, npt.NDArray[np.float64], Mask, Mask, dict[str, Any]]

_STATE_TYPES = {"episodes": Snapshot, "started": np.ndarray, "glimpses": list, "rewards": list, "generators": list}


class GlimpseVectorEnv(GlimpseBase, VectorEnv[Observation, Any, npt.NDArray[Any]]):
    """N episodes of ``GlimpseEnv``, which describes spaces, rewards and arguments.

    Environment i with seed s + i equals, step for step, a ``GlimpseEnv`` with that seed.

    - ``autoreset_mode="NextStep"`` (default): the next ``step`` resets an episode that ended. Its action is ignored,
      though it must be valid, and its reward is 0.
    - ``"SameStep"``: it is reset at once; its last observation and info are ``final_obs`` and ``final_info``.
    - ``"Disabled"``: the caller resets it with ``reset(options={"reset_mask": mask})``.

    ``reset(options={"image": rows})`` takes a row for all environments, or one for each.

    Args:
        num_envs: N.
        dataset: the dataset's short name.
        autoreset_mode: one of Gymnasium's modes, or its name.
        render_mode: ``None``, ``rgb_array`` or ``ansi``.
        arguments: the other arguments of ``GlimpseEnv``.

    Raises:
        ValueError: ``num_envs`` below 1 or more than memory holds, another mode, or as ``GlimpseEnv``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str = "shapes",
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(num_envs, (int, np.integer)) or isinstance(num_envs, bool) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer of at least 1, got {num_envs!r}")
        if render_mode not in (None, "rgb_array", "ansi"):
            raise ValueError(f"unknown render_mode {render_mode!r} of a vector; expected None, rgb_array or ansi")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError as error:
            modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise ValueError(f"unknown autoreset_mode {autoreset_mode!r}; expected one of {modes}") from error
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = self._num_episodes = int(num_envs)
        super().__init__(dataset, render_mode=render_mode, **arguments)
        self._generators: list[np.random.Generator] = [np_random()[0] for _ in range(self.num_envs)]

    def _make_spaces(self) -> None:
        self.single_observation_space = observation_space(self.task)
        self.single_action_space = action_space(self.task)
        try:
            self.observation_space = batch_space(self.single_observation_space, self.num_envs)
            self.action_space = action_space(self.task, self.num_envs)
        except (MemoryError, OverflowError, ValueError) as error:
            raise ValueError(
                f"num_envs={self.num_envs!r} asks for more memory than there is ({error}); make fewer environments"
            ) from error

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start captions, all or those of a mask.

        Args:
            seed: s seeds environment i with s + i; or one seed, or None, for each.
            options: ``image``, a row or one for each; ``reset_mask``, bool (N,), which environments to reset.

        Raises:
            ValueError: another option, options that are no dict, no such row, an invalid mask or invalid seeds;
                nothing has changed then.
        """
        options = read_options(options)
        mask = self._reset_mask(options.pop("reset_mask", None))
        rows = self._requested_rows(options)
        for slot, env_seed in enumerate(check_seeds(seed, self.num_envs)):
            if env_seed is not None and mask[slot]:
                self._generators[slot] = np_random(env_seed)[0]
        self._begin(mask.nonzero()[0], rows)
        return self._dynamics.observation(self.task.observe), self._infos(mask)

    def _reset_mask(self, mask: Any) -> Mask:
        if mask is None:
            return np.ones(self.num_envs, bool)
        array = np.asarray(mask)
        if array.dtype != np.bool_ or array.shape != (self.num_envs,) or not array.any():
            raise ValueError(
                f"reset_mask must be bool of shape ({self.num_envs},) with at least one True, "
                f"got {array.dtype} of shape {array.shape}"
            )
        return array

    def _requested_rows(self, options: dict[str, Any]) -> list[int | None]:
        rows = options.get("image")
        if rows is None or np.ndim(rows) == 0:
            return [requested_row(options, len(self.dataset))] * self.num_envs
        if len(rows) != self.num_envs:
            raise ValueError(f"image must be one row, or one for each of {self.num_envs} environments, got {len(rows)}")
        return [requested_row({**options, "image": row}, len(self.dataset)) for row in rows]

    def _begin(self, slots: npt.NDArray[np.int64], requested: Sequence[int | None] | None = None) -> None:
        """Start episodes, (B',): on the requested row of each of the N environments, or on a row that it draws."""
        generators, size = self._generators, len(self.dataset)
        fixed = {} if requested is None else {slot: row for slot, row in enumerate(requested) if row is not None}
        rows = [fixed[slot] if slot in fixed else draw_row(generators[slot], size) for slot in slots.tolist()]
        self._begin_episodes(slots, np.array(rows))
        if self.features.on_disk and not self.task.sampling.random:  # else words are drawn before the next row
            self.features.prefetch(np.array([_next_row(generators[slot], size) for slot in slots.tolist()]))

    def step(self, actions: Any) -> StepResult:
        """Attend, and let the decoder generate one word, in every environment.

        Args:
            actions: locations (N,), or weights (N, L).

        Raises:
            InvalidAction: in any row a masked location or one out of range, invalid weights, or a wrong type or shape.
            ResetNeeded: an environment was not reset, at first or (``Disabled``) after its caption's end.
        """
        dynamics = self._dynamics
        ended = dynamics.episodes.ended.copy()
        waiting = ~self._started if self.autoreset_mode == AutoresetMode.NEXT_STEP else ~self._started | ended
        if waiting.any():
            raise ResetNeeded(f"environment {int(waiting.argmax())} must be reset before the next step()")
        uniforms = None
        if self.task.sampling.random:
            dynamics.check_actions(actions)  # an invalid action must not advance a generator
            draws = zip(self._generators, ~ended, strict=True)
            uniforms = np.array([generator.random() if alive else 0.0 for generator, alive in draws])
        weights = None if self.render_mode is None else dynamics.weights(actions)  # the step may lift a mask
        transition = dynamics.step(actions, uniforms, keep_ended=False)  # ended episodes begin again below
        if self.render_mode is not None:
            self._record(weights, transition.rewards)
        self._allow_current_locations()
        if ended.any():  # NextStep
            self._begin(ended.nonzero()[0])
        terminated = dynamics.episodes.ended.copy()
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and terminated.any():
            infos = self._final(terminated)
            self._begin(terminated.nonzero()[0])
        infos |= self._infos(np.ones(self.num_envs, bool))
        observation = dynamics.observation(self.task.observe)
        return observation, transition.rewards, terminated, np.zeros(self.num_envs, bool), infos

    def _infos(self, mask: Mask) -> dict[str, Any]:
        """The infos of the environments of a mask, in Gymnasium's vector form: arrays, and masks of valid entries."""
        action_mask = self._dynamics.action_masks()
        if not mask.all():
            action_mask[~mask] = 0
        infos: dict[str, Any] = {"action_mask": action_mask, "_action_mask": mask.copy()}
        ended = mask & self._dynamics.episodes.ended
        if ended.any():
            slots = ended.nonzero()[0]
            for name, values in self._final_infos(slots).items():
                fill = None if values.dtype == object else 0
                infos[name] = np.full((self.num_envs, *values.shape[1:]), fill, values.dtype)
                infos[name][slots], infos[f"_{name}"] = values, ended.copy()
        return infos

    def _final(self, ended: Mask) -> dict[str, Any]:
        """``final_obs`` and ``final_info`` of the environments that have ended."""
        slots = ended.nonzero()[0]
        observations = self._dynamics.observation(self.task.observe, slots)
        final = np.full(self.num_envs, None, object)
        for index, slot in enumerate(slots.tolist()):
            final[slot] = {name: values[index] for name, values in observations.items()}
        return {
            "final_obs": final,
            "_final_obs": ended.copy(),
            "final_info": self._infos(ended),
            "_final_info": ended.copy(),
        }

    def get_state(self) -> dict[str, Any]:
        """A copy of all episodes, generators included; ``set_state`` goes back to it any number of times."""
        return {
            "episodes": self._dynamics.snapshot(),
            "started": self._started.copy(),
            "glimpses": [list(glimpses) for glimpses in self._glimpses],
            "rewards": list(self._returns),
            "generators": [dict(generator.bit_generator.state) for generator in self._generators],
        }

    def set_state(self, state: dict[str, Any]) -> Observation:
        """Go back to a state of ``get_state``, of this environment or of one made alike; returns its observation.

        Raises:
            ValueError: it is no such state, or of another number of environments; nothing has changed then.
        """
        check_state(state, _STATE_TYPES)
        for name in _STATE_TYPES.keys() - {"episodes"}:
            if len(state[name]) != self.num_envs:
                raise ValueError(f"state is of {len(state[name])} environments, expected {self.num_envs}")
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            check_generator(generator, saved)
        self._dynamics.restore(cast(Snapshot, state["episodes"]))
        self._allow_current_locations()
        self._started = state["started"].copy()
        self._glimpses, self._returns = [list(glimpses) for glimpses in state["glimpses"]], list(state["rewards"])
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        return self._dynamics.observation(self.task.observe)

    def render(self) -> tuple[Any, ...] | None:
        """A frame of every environment: uint8 (H, W, 3) for ``rgb_array``, a string for ``ansi``.

        Raises:
            ResetNeeded: an environment was not reset yet.
        """
        if self.render_mode is None:
            return None
        if not self._started.all():
            raise ResetNeeded(f"environment {int(self._started.argmin())} must be reset before render()")
        return tuple(self._frame(slot) for slot in range(self.num_envs))


def _next_row(generator: np.random.Generator, num_images: int) -> int:
    """The row that a generator will draw next."""
    state = generator.bit_generator.state
    row = draw_row(generator, num_images)
    generator.bit_generator.state = state
    return row
