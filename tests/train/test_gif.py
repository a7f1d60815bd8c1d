"""Moving pictures of agents: a frame a glimpse, small files, and those in the docs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageSequence

from glimpse_env.datasets import Shapes
from glimpse_env.rendering.frames import render_frame
from glimpse_env.rollout.beam_search import Captioned
from tests.conftest import ROOT
from train.gif import FRAME_TIME, LAST_FRAME_TIME, Options, draw_frames, main, save_gif

SHOWN = sorted((ROOT / "docs" / "images").glob("*.gif"))


def glimpses(locations):
    return np.eye(49, dtype=np.float32)[locations]


def test_a_frame_a_glimpse_and_the_reward_on_the_last():
    caption = Captioned(0, ["a", "ring"], True, glimpses([3, 3, 9]), -1.0)
    image = Shapes("test").image(0)
    frames = draw_frames(image, caption, (7, 7), "hard", 0.5, 224)
    assert len(frames) == 4
    unpaid = draw_frames(image, caption, (7, 7), "hard", None, 224)
    assert [np.array_equal(*pair) for pair in zip(frames, unpaid, strict=True)] == [True, True, True, False]
    assert not np.array_equal(frames[1], frames[2])


def test_a_silent_step_adds_a_frame_and_no_word():
    image = Shapes("test").image(0)
    caption = Captioned(0, ["a", "ring"], False, glimpses([3, 3, 9]), -1.0, silent_steps=(1,))
    frames = draw_frames(image, caption, (7, 7), "hard", None, 224)
    for words, locations, frame in zip(
        ([], ["a"], ["a"], ["a", "ring"]), ([], [3], [3, 3], [3, 3, 9]), frames, strict=True
    ):
        weights = glimpses(locations[-1]) if locations else None
        drawn = render_frame(image, (7, 7), weights=weights, trail=locations[:-1], words=words, title="hard", size=224)
        assert np.array_equal(frame, drawn)


def test_a_gif_has_every_frame_and_lingers_on_the_last(tmp_path):
    caption = Captioned(0, ["a", "ring"], True, glimpses([3, 3, 9]), -1.0)
    frames = draw_frames(Shapes("test").image(0), caption, (7, 7), "hard", 0.5, 224)
    save_gif([frames, frames], tmp_path / "two.gif")
    with Image.open(tmp_path / "two.gif") as gif:
        assert gif.info["loop"] == 0
        saved = [(frame.info["duration"], np.asarray(frame.convert("RGB"))) for frame in ImageSequence.Iterator(gif)]
    assert [time for time, _ in saved] == 2 * [FRAME_TIME, FRAME_TIME, FRAME_TIME, LAST_FRAME_TIME]
    for (_, pixels), expected in zip(saved, [*frames, *frames], strict=True):
        assert np.abs(pixels.astype(float) - expected).mean() < 8


def test_the_command_draws_a_shipped_agent(tmp_path, capsys):
    main(Options(agent="reinforce", images=(3, 4), size=224, out=tmp_path / "some.gif"))
    printed = capsys.readouterr().out
    assert "shapes-test-3: " in printed
    assert "shapes-test-4: " in printed
    with Image.open(tmp_path / "some.gif") as gif:
        assert gif.n_frames > 20


def test_a_picture_of_ones_own_is_for_attention_only(tmp_path):
    with pytest.raises(ValueError, match="choose hard or soft"):
        main(Options(agent="oracle", photo=tmp_path / "x.png"))
    Shapes("test").image(0).save(tmp_path / "x.png")
    main(Options(agent="soft", photo=tmp_path / "x.png", size=224, out=tmp_path / "own.gif"))
    with Image.open(tmp_path / "own.gif") as gif:
        assert gif.n_frames > 5


def test_a_run_is_drawn_on_photographs_of_ones_own_copy_of_coco(tmp_path, captioner_file, attention_file, capsys):
    scenes = Shapes("val")
    images = []
    for row in range(3):
        scenes.image(row).save(tmp_path / f"{row}.jpg")
        sentences = [{"raw": " ".join(words)} for words in scenes.references(row)[:5]]
        images.append({"filename": f"{row}.jpg", "filepath": ".", "split": "val", "sentences": sentences})
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    run = tmp_path / "coco-soft"
    run.mkdir()
    shutil.copy(captioner_file, run / "captioner.safetensors")
    shutil.copy(attention_file, run / "attention.safetensors")
    options = {"env": "Glimpse/Coco-v0", "split": "val", "data_root": tmp_path, "size": 224}
    main(Options(agent=f"soft:{run}", images=(2,), out=tmp_path / "coco.gif", **options))
    assert "2.jpg: " in capsys.readouterr().out
    with Image.open(tmp_path / "coco.gif") as gif:
        assert gif.n_frames > 1


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_what_the_docs_show_is_small_and_moves(path):
    assert path.stat().st_size < 300_000
    with Image.open(path) as gif:
        assert gif.n_frames > 5
