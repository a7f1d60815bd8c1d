"""A pygame window that shows frames; pygame is imported only when a window is opened."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pygame

_HEADLESS_DRIVERS = ("offscreen", "dummy")  # of SDL, without a visible window


class Window:
    """A pygame window for ``render_mode="human"``; it opens with the first frame and takes the frame's size.

    pygame has one window a process: a second ``Window`` takes it over, and closing either closes it.

    :meth:`show` waits so that there are at most ``fps`` frames a second, or not at all if it is 0.

    Raises:
        DependencyNotInstalled: pygame is missing.
        ValueError: ``fps`` is negative or not finite.
    """

    def __init__(self, *, fps: float = 4.0, caption: str = "glimpse-env") -> None:
        try:
            import pygame
        except ImportError as error:
            raise DependencyNotInstalled("pygame is not installed; pip install 'glimpse-env[play]'") from error
        if not 0 <= fps < float("inf"):
            raise ValueError(f"fps is {fps}; expected a number of frames a second, or 0 for no limit")
        self.fps, self.caption = fps, caption
        self._clock = pygame.time.Clock()
        self._screen: pygame.Surface | None = None

    def show(self, frame: NDArray[np.uint8]) -> None:
        """Show one frame, uint8 (H, W, 3). After :meth:`close` it opens the window again.

        Raises:
            ValueError: the frame has another shape or dtype.
            OSError: there is no screen.
        """
        import pygame

        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"frame is {frame.dtype} {frame.shape}; expected uint8 (height, width, 3)")
        size = (frame.shape[1], frame.shape[0])
        if self._screen is None or self._screen is not pygame.display.get_surface() or self._screen.get_size() != size:
            try:
                pygame.display.init()
                if pygame.display.get_driver() in _HEADLESS_DRIVERS and not os.environ.get("SDL_VIDEODRIVER"):
                    raise pygame.error("no screen was found")
                pygame.display.set_caption(self.caption)
                self._screen = pygame.display.set_mode(size)
            except pygame.error as error:
                raise OSError(
                    f"no window can be opened here ({error}); on a machine without a screen choose "
                    "render_mode='rgb_array', or set SDL_VIDEODRIVER=dummy"
                ) from error
        pygame.surfarray.blit_array(self._screen, frame.swapaxes(0, 1))  # pygame's arrays are (W, H, 3)
        pygame.event.pump()  # keeps the window alive and leaves the events to the player
        pygame.display.flip()
        self._clock.tick(self.fps)

    def close(self) -> None:
        """Close the window; closing it twice, or before the first frame, does nothing."""
        if self._screen is None:
            return
        import pygame

        self._screen = None
        pygame.display.quit()
