"""From an agent to captions, and from captions to figures."""

from __future__ import annotations

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu

from agents.hard_attention import HardAttentionAgent
from agents.scripted import RandomAgent, RasterScanAgent
from agents.soft_attention import SoftAttentionAgent
from glimpse_env.datasets import Shapes
from glimpse_env.dynamics import CaptionDynamics
from glimpse_env.features import open_features
from glimpse_env.reward import BleuReward
from glimpse_env.sampling import WordSampling
from train.scoring import Captioned, play, score, sentence_scores

WORDS = "a dog cat runs on the grass near house tree".split()


def captioned(words: str, ended: bool = True) -> Captioned:
    return Captioned(0, words.split(), ended, np.ones((1, 1), np.float32))


def random_corpus(size: int = 40) -> tuple[list[Captioned], list[list[list[str]]]]:
    rng = np.random.default_rng(0)

    def sentence() -> list[str]:
        return rng.choice(WORDS, size=rng.integers(3, 12)).tolist()

    captions, references = [], []
    for _ in range(size):
        refs = [sentence() for _ in range(rng.integers(1, 5))]
        said = refs[0][: rng.integers(1, 9)] + sentence()[:2]
        captions.append(captioned(" ".join(said), bool(rng.integers(2))))
        references.append(refs)
    return captions, references


def test_figures_are_nltks():
    captions, references = random_corpus()
    found = score(captions, references)
    words = [caption.words for caption in captions]
    for order in (1, 2, 3, 4):
        expected = corpus_bleu(references, words, [1 / order] * order)
        assert found.bleu[order - 1] == pytest.approx(expected, abs=1e-12)
    smooth = SmoothingFunction().method1
    each = [sentence_bleu(refs, said, smoothing_function=smooth) for refs, said in zip(references, words, strict=True)]
    assert sentence_scores(captions, references) == pytest.approx(each, abs=1e-12)
    assert found.sentence_bleu == pytest.approx(np.mean(each), abs=1e-12)
    assert found.num_images == len(captions)
    assert 0 < found.bleu[3] < found.bleu[0] < 1


def test_captions_are_paired_with_the_references_of_their_images():
    captions = [captioned("a dog runs on the grass"), captioned("the cat near a tree")]
    references = [[caption.words] for caption in captions]
    assert score(captions, references).bleu == [1, 1, 1, 1]
    assert score(captions, references[::-1]).bleu[3] < 1e-6
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        score(captions, references[:1])


@pytest.mark.parametrize(
    ("said", "lengths", "closest"),
    [(5, [5, 9], 5), (6, [5, 9], 5), (8, [5, 9], 9), (7, [5, 9], 5), (7, [9, 5], 5), (2, [9, 11], 9), (12, [9], 9)],
)
def test_length_ratio_is_to_the_closest_reference_the_shorter_of_two_alike(said, lengths, closest):
    found = score([captioned("word " * said)], [[["word"] * length for length in lengths]])
    assert found.length_ratio == pytest.approx(said / closest)


def test_length_ratio_is_over_the_corpus():
    captions = [captioned("a b c d"), captioned("a")]
    assert score(captions, [[["a"] * 2], [["a"] * 6]]).length_ratio == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("words", "ended", "bad"),
    [
        ("a dog runs", True, 0),
        ("a dog runs", False, 1),
        ("a dog runs on", True, 1),
        ("a dog next to the", True, 1),
        ("a circle is left of", True, 1),
        ("the", True, 1),
        ("", True, 1),
        ("the on a dog", True, 0),
    ],
)
def test_bad_endings(words, ended, bad):
    assert score([captioned(words, ended)], [[["a", "dog"]]]).bad_endings == bad


def test_shares_of_captions():
    captions = [captioned("a dog"), captioned("a dog"), captioned("a cat on"), captioned("a tree", False)]
    found = score(captions, [[["a", "dog"]]] * 4)
    assert found.bad_endings == 0.5
    assert found.distinct == 0.5


@pytest.fixture(scope="module")
def world(captioner):
    dataset = Shapes("val")
    return dataset, open_features(dataset, captioner.encoder)


def make_dynamics(captioner, world, size, attention="hard", **more):
    dataset, features = world
    return CaptionDynamics(captioner, features, dataset, BleuReward(), num_episodes=size, attention=attention, **more)


ROWS = [3, 14, 15, 92, 65, 35, 8]


@pytest.mark.parametrize("kind", ["soft", "hard", "raster"])
@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_every_row_is_captioned_once_and_alike_in_any_batch(captioner, attention, world, kind, size):
    agent = {
        "soft": SoftAttentionAgent(attention, world[1]),
        "hard": HardAttentionAgent(attention, world[1]),
        "raster": RasterScanAgent(49),
    }[kind]
    made = play(make_dynamics(captioner, world, size, agent.attention), agent, ROWS)
    assert [one.row for one in made] == ROWS
    for one in made:
        alone = play(make_dynamics(captioner, world, 1, agent.attention), agent, [one.row])[0]
        assert one.words == alone.words
        assert one.ended == alone.ended
        assert one.looked.shape == (len(one.words) + one.ended, 49)
        np.testing.assert_allclose(one.looked.sum(1), 1, atol=1e-5)
        np.testing.assert_allclose(one.looked, alone.looked, atol=1e-4)
    assert len({(*one.words, one.looked.round(3).tobytes()) for one in made}) > 1


def test_looked_is_where_the_agent_looked(captioner, world):
    made = play(make_dynamics(captioner, world, 3), RasterScanAgent(49), ROWS)
    for one in made:
        expected = [int(step / 20 * 49 + 1e-4) for step in range(len(one.looked))]
        assert one.looked.argmax(1).tolist() == expected
        assert set(np.unique(one.looked)) == {0, 1}


def test_no_caption_is_longer_than_allowed(captioner, world):
    made = play(make_dynamics(captioner, world, 4, max_caption_length=3), RasterScanAgent(49), ROWS)
    assert all(len(one.looked) <= 3 for one in made)
    assert any(not one.ended for one in made)


def test_drawn_words_follow_from_the_generator(captioner, world):
    def draw(seed):
        dynamics = make_dynamics(captioner, world, 4, sampling=WordSampling("sample"))
        agent = RandomAgent(49, 0)
        return [one.words for one in play(dynamics, agent, ROWS, rng=np.random.default_rng(seed))]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
