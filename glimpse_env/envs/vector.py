"""The vector environment: N captions at once behind Gymnasium's vector API, one decoder step for all of them.

A door to ``CaptionDynamics``, like ``env``. It knows seeding, resets and infos of N episodes, and no transitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from glimpse_env.envs.single import GlimpseEnv, Observation
from glimpse_env.envs.spaces import action_space, observation_space
from glimpse_env.envs.task import TaskView, make_task
from glimpse_env.envs.validation import check_generator, check_state, chosen_row, draw_rows, reset_options
from glimpse_env.rendering.frames import render_frame, render_text
from glimpse_env.rollout.state import Snapshot

Mask = npt.NDArray[np.bool_]
Steps = tuple[Observation, npt.NDArray[np.float64], Mask, Mask, dict[str, Any]]


_STATE = {"episodes": Snapshot, "started": np.ndarray, "glimpses": list, "rewards": list, "generators": list}


class GlimpseVectorEnv(VectorEnv[Observation, Any, npt.NDArray[Any]], TaskView):
    """N episodes of ``GlimpseEnv``, which describes spaces, rewards and arguments.

    Environment i, seeded with s + i, goes through what a ``GlimpseEnv`` seeded so goes through, step for step.

    - ``autoreset_mode="NextStep"`` (default): an episode that ended is reset by the next ``step``, whose action is not
      read, though it must be valid, and whose reward is 0.
    - ``"SameStep"``: it is reset at once; its last observation and info are ``final_obs`` and ``final_info``.
    - ``"Disabled"``: the caller resets it with ``reset(options={"reset_mask": mask})``.

    ``reset(options={"image": rows})`` takes a row for all environments, or one for each.

    Args:
        num_envs: N.
        dataset: the dataset's short name.
        autoreset_mode: one of Gymnasium's modes, or its name.
        render_mode: ``None``, ``rgb_array`` or ``ansi``.
        task: the other arguments of ``GlimpseEnv``.

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
        **task: Any,
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
        self.metadata = {**GlimpseEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = int(num_envs)
        self.render_mode = render_mode
        self.task = make_task(dataset, **task)
        self.single_observation_space = observation_space(self.task)
        self.single_action_space = action_space(self.task)
        try:
            self.observation_space = batch_space(self.single_observation_space, self.num_envs)
            self.action_space = batch_space(self.single_action_space, self.num_envs)
        except (MemoryError, OverflowError, ValueError) as error:
            raise ValueError(
                f"num_envs={num_envs!r} asks for more memory than there is ({error}); make fewer environments"
            ) from error
        self._dynamics = self.task.dynamics(self.num_envs)
        self._generators: list[np.random.Generator] = [np_random()[0] for _ in range(self.num_envs)]
        self._started = np.zeros(self.num_envs, bool)
        self._glimpses: list[list[npt.NDArray[np.float32]]] = [[] for _ in range(self.num_envs)]  # for pictures
        self._rewards: list[float | None] = [None] * self.num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start captions, all or those of a mask.

        Args:
            seed: s seeds environment i with s + i; or one seed, or None, for each.
            options: ``image``, a row or one for each; ``reset_mask``, bool (N,), which environments to reset.

        Raises:
            ValueError: another option, options that are no dict, no such row, what is no mask or are no seeds;
                nothing has changed then.
        """
        asked = reset_options(options)
        mask = self._reset_mask(asked.pop("reset_mask", None))
        slots = mask.nonzero()[0]
        images = self._images(asked)
        for slot, one in enumerate(self._seeds(seed)):
            if one is not None and mask[slot]:
                self._generators[slot] = np_random(one)[0]
        self._begin(slots, images)
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

    def _images(self, options: dict[str, Any]) -> list[int | None]:
        rows = options.get("image")
        if rows is None or np.ndim(rows) == 0:
            return [chosen_row(options, len(self.dataset))] * self.num_envs
        if len(rows) != self.num_envs:
            raise ValueError(f"image must be one row, or one for each of {self.num_envs} environments, got {len(rows)}")
        return [chosen_row({**options, "image": row}, len(self.dataset)) for row in rows]

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        asked: Any = seed.tolist() if isinstance(seed, (np.ndarray, np.generic)) else seed
        if isinstance(asked, int):
            seeds: list[Any] = [asked + slot for slot in range(self.num_envs)]
        else:
            seeds = list(asked) if isinstance(asked, Sequence) else [asked] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(f"expected one seed for each of {self.num_envs} environments, got {len(seeds)}")
        wrong = [one for one in seeds if one is not None and (not isinstance(one, (int, np.integer)) or one < 0)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no seed; expected integers of at least 0, or None")
        return [None if one is None else int(one) for one in seeds]

    def _begin(self, slots: npt.NDArray[np.int64], images: Sequence[int | None] | None = None) -> None:
        generators, size = self._generators, len(self.dataset)
        if images is None:
            rows = draw_rows([generators[slot].random() for slot in slots.tolist()], size)
        else:
            chosen = [images[slot] for slot in slots.tolist()]
            rows = draw_rows(
                [generators[slot].random() if row is None else 0.0 for slot, row in zip(slots, chosen, strict=True)],
                size,
            )
            asked = [place for place, row in enumerate(chosen) if row is not None]
            rows[asked] = [chosen[place] for place in asked]
        self._dynamics.begin(slots, rows)
        if self.features.on_disk and not self.task.sampling.random:  # drawn words would come before the next row
            coming = draw_rows([_next_number(generators[slot]) for slot in slots.tolist()], size)
            self.features.ahead(coming)
        self._started[slots] = True
        for slot in slots.tolist() if self.render_mode is not None else ():
            self._glimpses[slot], self._rewards[slot] = [], None

    def step(self, actions: Any) -> Steps:
        """Look, and let the decoder say one word, in every environment.

        Args:
            actions: locations (N,), or weights (N, L).

        Raises:
            InvalidAction: in any row a location out of range, a wrong type, or negative or non-finite weights.
            ResetNeeded: an environment was not reset, at first or (``Disabled``) after its caption's end.
        """
        dynamics = self._dynamics
        ended = dynamics.episodes.ended.copy()
        waiting = ~self._started if self.autoreset_mode == AutoresetMode.NEXT_STEP else ~self._started | ended
        if waiting.any():
            raise ResetNeeded(f"environment {int(waiting.argmax())} must be reset before the next step()")
        draws = None
        if self.task.sampling.random:
            dynamics.check_actions(actions)  # before a generator moves
            draws = self._draws(~ended)
        transition = dynamics.step(actions, draws, keep_ended=False)  # all that have ended begin anew below
        if self.render_mode is not None:
            self._remember(actions, transition.rewards)
        if ended.any():  # NextStep
            self._begin(ended.nonzero()[0])
        terminated = dynamics.episodes.ended.copy()
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and terminated.any():
            infos = self._final(terminated)
            self._begin(terminated.nonzero()[0])
            infos |= self._infos(np.ones(self.num_envs, bool), report=False)
        else:
            infos = self._infos(np.ones(self.num_envs, bool))
        return (
            self._dynamics.observation(self.task.observe),
            transition.rewards,
            terminated,
            np.zeros(self.num_envs, bool),
            infos,
        )

    def _remember(self, actions: Any, rewards: npt.NDArray[np.float64]) -> None:
        """Keep what frames show."""
        ended = self._dynamics.episodes.ended
        for slot, weights in enumerate(self._dynamics.weights(actions)):
            self._glimpses[slot].append(weights)
            if self.task.shaped or ended[slot]:
                self._rewards[slot] = (self._rewards[slot] or 0.0) + float(rewards[slot])

    def _draws(self, alive: Mask) -> npt.NDArray[np.float64]:
        """A uniform number for every environment that says a word, each from its own generator."""
        return np.array([one.random() if said else 0.0 for one, said in zip(self._generators, alive, strict=True)])

    def _infos(self, mask: Mask, report: bool = True) -> dict[str, Any]:
        """The infos of the environments of a mask, in Gymnasium's vector form: arrays and the masks of who has them."""
        dynamics = self._dynamics
        action_mask = np.ones((self.num_envs, dynamics.num_locations), np.int8)
        if not mask.all():
            action_mask[~mask] = 0
        infos: dict[str, Any] = {"action_mask": action_mask, "_action_mask": mask.copy()}
        ended = mask & dynamics.episodes.ended
        if not report or not ended.any():
            return infos
        slots = ended.nonzero()[0]
        bleu = np.where(ended[:, None], dynamics.episodes.bleu, 0.0)
        captions, names = np.empty(self.num_envs, object), np.empty(self.num_envs, object)  # of None
        captions[slots] = [" ".join(words) for words in dynamics.captions(slots)]
        image_id = self.dataset.image_id
        names[slots] = [image_id(row) for row in dynamics.episodes.rows[slots].tolist()]
        for name, values in (("caption", captions), ("bleu", bleu), ("image_id", names)):
            infos[name], infos[f"_{name}"] = values, ended.copy()
        return infos

    def _final(self, ended: Mask) -> dict[str, Any]:
        """``final_obs`` and ``final_info`` of the environments that have ended."""
        slots = ended.nonzero()[0]
        seen = self._dynamics.observation(self.task.observe, slots)
        final = np.empty(self.num_envs, object)  # of None
        for place, slot in enumerate(slots.tolist()):
            final[slot] = {name: part[place] for name, part in seen.items()}
        return {
            "final_obs": final,
            "_final_obs": ended.copy(),
            "final_info": self._infos(ended),
            "_final_info": ended.copy(),
        }

    def get_state(self) -> dict[str, Any]:
        """A copy of all episodes, generators included; ``set_state`` goes back to it as often as wanted."""
        return {
            "episodes": self._dynamics.snapshot(),
            "started": self._started.copy(),
            "glimpses": [list(one) for one in self._glimpses],
            "rewards": list(self._rewards),
            "generators": [dict(one.bit_generator.state) for one in self._generators],
        }

    def set_state(self, state: dict[str, Any]) -> Observation:
        """Go back to a state of ``get_state``, of this environment or of one made alike; returns its observation.

        Raises:
            ValueError: it is no such state, or of another number of environments; nothing has changed then.
        """
        check_state(state, _STATE)
        for part in _STATE.keys() - {"episodes"}:
            if len(state[part]) != self.num_envs:
                raise ValueError(f"state is of {len(state[part])} environments, expected {self.num_envs}")
        for one, kept in zip(self._generators, state["generators"], strict=True):
            check_generator(one, kept)
        self._dynamics.restore(cast(Snapshot, state["episodes"]))
        self._started = state["started"].copy()
        self._glimpses, self._rewards = [list(one) for one in state["glimpses"]], list(state["rewards"])
        for one, kept in zip(self._generators, state["generators"], strict=True):
            one.bit_generator.state = kept
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

    def _frame(self, slot: int) -> Any:
        episodes, glimpses = self._dynamics.episodes, self._glimpses[slot]
        row, grid = int(episodes.rows[slot]), self.captioner.encoder.config.grid
        weights = glimpses[-1] if glimpses else None
        words, reward = self._dynamics.caption(slot), self._rewards[slot]
        if self.render_mode == "ansi":
            ended, name = bool(episodes.ended[slot]), self.dataset.image_id(row)
            return render_text(name, grid, weights=weights, words=words, reward=reward, ended=ended)
        trail = [int(past.argmax()) for past in glimpses[:-1]] if self.task.attention == "hard" else []
        image = self.dataset.image(row)
        return render_frame(image, grid, weights=weights, trail=trail, words=words, reward=reward)


def _next_number(generator: np.random.Generator) -> float:
    """What a generator will say next."""
    state = generator.bit_generator.state
    number = generator.random()
    generator.bit_generator.state = state
    return number
