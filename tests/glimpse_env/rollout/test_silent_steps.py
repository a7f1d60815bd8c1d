"""A vocabulary may hold ``<blank>``: a step that costs time and adds no word."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from agents.scripted import RandomAgent
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets.shapes import Shapes
from glimpse_env.features.table import FeatureTable
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward
from glimpse_env.models.captioner import Captioner, load_captioner, save_captioner
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig
from glimpse_env.rollout.beam_search import BeamSearch
from glimpse_env.rollout.decode import decode
from glimpse_env.rollout.dynamics import CaptionDynamics
from glimpse_env.rollout.word_sampling import WordSampling
from train.evaluate.attention_metrics import replay

ROWS, LONGEST = 12, 9


class FewShapes(Shapes):
    def __len__(self):
        return ROWS


@pytest.fixture(scope="module")
def captioner():
    torch.manual_seed(0)
    words = [word for row in range(ROWS) for caption in FewShapes("val").references(row) for word in caption]
    vocabulary = Vocabulary.from_captions([words], blank=True)
    decoder = CaptionDecoder(DecoderConfig(len(vocabulary), 8, 7, 12, 9, init="zeros"))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)
        decoder.output_word.bias[vocabulary.blank] += 1.5  # about every third step is silent
    return (
        Captioner(CNNEncoder(EncoderConfig(feature_dim=8)), decoder, vocabulary, "shapes").eval().requires_grad_(False)
    )


@pytest.fixture(scope="module")
def features():
    return FeatureTable(np.random.default_rng(0).normal(size=(ROWS, 49, 8)).astype(np.float16))


def make(captioner, features, **arguments):
    references = SplitReferences(FewShapes("val"), captioner.vocabulary)
    return CaptionDynamics(
        captioner, features, references, BleuReward(), num_episodes=ROWS, max_caption_length=LONGEST, **arguments
    )


def run(dynamics, seed=0):
    """Words of every step, (steps, B), and the rewards."""
    rng = np.random.default_rng(seed)
    dynamics.begin(np.arange(ROWS), np.arange(ROWS))
    words, rewards = [], []
    while not dynamics.episodes.ended.all():
        transition = dynamics.step(rng.integers(49, size=ROWS), rng.random(ROWS))
        words.append(transition.words)
        rewards.append(transition.rewards)
    return np.array(words), np.array(rewards)


@pytest.mark.parametrize("shaped", [False, True])
def test_blanks_cost_steps_and_add_no_word(captioner, features, shaped):
    vocabulary = captioner.vocabulary
    dynamics = make(captioner, features, shaped=shaped, sampling=WordSampling("sample"))
    words, rewards = run(dynamics)
    episodes, reward = dynamics.episodes, BleuReward()
    assert (words == vocabulary.blank).any()
    for slot in range(ROWS):
        emitted = [word for word in words[:, slot].tolist() if word != vocabulary.pad]
        spoken = [word for word in emitted if word != vocabulary.blank]
        ended = spoken[-1:] == [vocabulary.end]
        assert episodes.steps[slot] == len(emitted) <= LONGEST
        assert episodes.lengths[slot] == len(spoken)
        assert ended or len(emitted) == LONGEST  # T counts steps
        caption = [vocabulary.words[word] for word in spoken if word != vocabulary.end]
        assert dynamics.caption(slot) == caption
        expected = reward(FewShapes("val").references(slot), caption, ended)
        assert rewards[:, slot].sum() == pytest.approx(expected, abs=1e-12)


def test_the_observation_counts_steps(captioner, features):
    dynamics = make(captioner, features)
    dynamics.begin(np.arange(ROWS), np.arange(ROWS))
    dynamics.attend(np.full(ROWS, 5))
    dynamics.append_words(torch.full((ROWS,), captioner.vocabulary.blank))
    observation = dynamics.observation("index")
    assert observation["word"][:, 0].tolist() == [captioner.vocabulary.blank] * ROWS
    np.testing.assert_allclose(observation["time"], 1 / LONGEST, rtol=1e-6)
    assert (observation["glimpses"][:, 5] == 1).all()
    assert not dynamics.episodes.lengths.any()


def test_a_caption_of_blanks_alone_is_empty(captioner, features):
    dynamics = make(captioner, features)
    dynamics.begin(np.arange(ROWS), np.arange(ROWS))
    total = np.zeros(ROWS)
    for _ in range(LONGEST):
        dynamics.attend(np.zeros(ROWS, int))
        total += dynamics.append_words(torch.full((ROWS,), captioner.vocabulary.blank)).rewards
    assert dynamics.episodes.ended.all()
    assert dynamics.captions(np.arange(ROWS)) == [[]] * ROWS
    assert (total == 0).all()
    assert (dynamics.episodes.metrics == 0).all()


class NextLocation:
    """Looks at locations 0, 1, 2, …"""

    attention = "hard"

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        state = np.zeros(len(observation["word"]), int) if state is None else state
        state = np.where(episode_start, 0, state)
        return state, state + 1


@pytest.mark.parametrize("decoding", ["greedy", "sample", BeamSearch(1), BeamSearch(4), BeamSearch(4, 1.0, 2)], ids=str)
def test_captions_of_decoders_have_a_glimpse_a_step(captioner, features, decoding):
    captions = decode(captioner, features, NextLocation(), range(ROWS), decoding, max_caption_length=LONGEST, batch=5)
    for caption in captions:
        words = caption.step_words
        assert caption.glimpses.argmax(1).tolist() == list(range(len(words)))
        assert len(words) == LONGEST or caption.ended
        assert [step for step, word in enumerate(words) if word == "<blank>"] == list(caption.silent_steps)
        assert [word for word in words if word != "<blank>"] == [*caption.words, *["<end>"] * caption.ended]
        assert np.isfinite(caption.log_probability)
    assert any(caption.silent_steps for caption in captions)


@pytest.mark.parametrize("length_normalisation", [0.0, 0.7, 1.0])
def test_a_beam_of_silent_steps_alone_ends(captioner, features, length_normalisation):
    captioner, width = copy.deepcopy(captioner), 1 if length_normalisation == 0.7 else 3
    with torch.no_grad():
        captioner.decoder.output_word.bias[captioner.vocabulary.blank] += 50
    search = BeamSearch(width, length_normalisation)
    for caption in decode(captioner, features, NextLocation(), range(3), search, max_caption_length=LONGEST):
        assert (caption.words, caption.ended, caption.silent_steps) == ([], False, tuple(range(LONGEST)))
        assert caption.glimpses.shape == (LONGEST, 49)


@pytest.mark.parametrize("decoding", ["sample", BeamSearch(3)], ids=str)
def test_captions_are_replayed_with_their_silent_steps(captioner, features, decoding):
    captions = decode(captioner, features, RandomAgent(49, 3), range(ROWS), decoding, max_caption_length=LONGEST)
    words = [captioner.vocabulary.encode(caption.step_words) for caption in captions]
    sums = np.zeros(ROWS)
    for step, replayed in enumerate(replay(captioner, features, captions, "hard", max_caption_length=LONGEST)):
        logs = replayed.logits.log_softmax(-1).numpy()
        for slot in replayed.alive.nonzero()[0]:
            sums[slot] += logs[slot, words[slot][step]]
    np.testing.assert_allclose(sums, [caption.log_probability for caption in captions], atol=1e-4)
    assert any(caption.silent_steps for caption in captions)


def test_a_captioners_file_keeps_the_blank(captioner, tmp_path):
    save_captioner(captioner, tmp_path / "file.safetensors")
    loaded = load_captioner(tmp_path / "file.safetensors").vocabulary
    assert loaded.blank == captioner.vocabulary.blank is not None
    assert Vocabulary(["a"]).blank is None
