"""Pictures of episodes: frames, text grids, figures, and a window that shows frames."""

from glimpse_env.rendering.drawing import is_drawing, mark_drawing
from glimpse_env.rendering.frames import render_frame, render_text
from glimpse_env.rendering.panels import render_panels
from glimpse_env.rendering.window import Window

__all__ = ["Window", "is_drawing", "mark_drawing", "render_frame", "render_panels", "render_text"]
