"""The pygame window shows frames, leaves keys to the player, and closes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from PIL import Image

from glimpse_env.rendering.frames import render_frame
from glimpse_env.rendering.window import Window

GREY = Image.new("RGB", (200, 150), (120, 120, 120))
CAPTION = "a black dog".split()


def test_the_window_shows_the_frame(pygame):
    window = Window(fps=0, caption="a dog")
    for step in range(3):
        frame = render_frame(GREY, (7, 7), weights=np.eye(49)[step], words=CAPTION[:step], size=160)
        window.show(frame)
        pixels = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
        assert np.array_equal(pixels, frame)
    assert pygame.display.get_caption()[0] == "a dog"
    larger = render_frame(GREY, (7, 7), weights=None, size=200)
    window.show(larger)
    assert pygame.display.get_surface().get_size() == larger.shape[1::-1]
    window.close()


def test_the_window_closes_once_and_opens_again(pygame):
    frame = render_frame(GREY, (7, 7), weights=None, size=160)
    window = Window(fps=0)
    window.close()
    window.show(frame)
    window.close()
    window.close()
    assert not pygame.display.get_init()
    window.show(frame)
    assert pygame.display.get_init()
    pygame.display.quit()  # as a second window's close does
    window.show(frame)
    assert pygame.display.get_surface() is not None
    window.close()


def test_the_window_leaves_the_keys_to_the_player(pygame):
    frame = render_frame(GREY, (7, 7), weights=None, size=160)
    window = Window(fps=0)
    window.show(frame)
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_LEFT))
    window.show(frame)
    assert [event.key for event in pygame.event.get(pygame.KEYDOWN)] == [pygame.K_LEFT]
    window.close()


def test_wrong_frames_are_named(pygame):
    window = Window(fps=0)
    with pytest.raises(ValueError, match=r"float64 \(4, 4, 3\).*uint8"):
        window.show(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"uint8 \(4, 4\)"):
        window.show(np.zeros((4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match="fps is -1"):
        Window(fps=-1)


def test_without_pygame_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(DependencyNotInstalled, match=r"pip install 'glimpse-env\[play\]'"):
        Window()
