"""REINFORCE's expected gradient is the gradient of the expected reward; the command trains, resumes and refuses."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from agents.attention import AdditiveAttention, AttentionConfig, load_attention, save_attention
from agents.attention_agents import log_probability
from agents.loading import find_start
from glimpse_env.datasets.shapes import Shapes
from glimpse_env.features.build import open_features
from glimpse_env.features.table import FeatureTable
from glimpse_env.metrics.bleu import BleuStatistics, bleu, corpus_statistics
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import register_reward
from glimpse_env.models.captioner import load_captioner
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig, DecoderState
from glimpse_env.rollout.dynamics import CaptionDynamics
from glimpse_env.rollout.word_sampling import WordSampling
from train.reinforce.trainer import Options, Trainer, main, settle
from train.reinforce.trajectories import Rollouts, Value, advantages, as_batch, corpus_gains, glimpse_scores, roll_out

L, ROW, K = 5, 0, 4
BASELINES = ["leave-one-out", "self-critical", "moving-average", "value"]


def odd_letters(references, words, ended):
    """A reward that tells paths apart, and pays every word."""
    return sum(len(word) % 3 for word in words) / 3


class OneScene:
    """The first scene of val, seen through five of its tiles only, so that all paths can be counted."""

    def __init__(self, captioner):
        shapes = Shapes("val")
        whole = open_features(shapes, captioner.encoder)
        self.references = SplitReferences(shapes, captioner.vocabulary)
        self.features = FeatureTable(whole[: ROW + 1][:, [3, 10, 17, 24, 40]])
        self.captioner = captioner

    def dynamics(self, count, per_image=1, **options):
        return CaptionDynamics(
            self.captioner,
            self.features,
            self.references,
            odd_letters,
            num_episodes=count,
            per_image=per_image,
            max_caption_length=3,
            **options,
        )

    @property
    def annotations(self):
        return torch.from_numpy(self.features[[ROW]]).float()


@pytest.fixture(scope="module")
def scene(captioner):
    return OneScene(captioner)


@pytest.fixture
def policy(captioner):
    torch.manual_seed(3)
    config = captioner.decoder.config
    attention = AdditiveAttention(AttentionConfig(config.feature_dim, config.hidden_dim, 4))
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.mul_(2)
    return attention


def flat_gradient(loss, module):
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(module.parameters()))])


def exact_gradient(scene, attention):
    """Of −E[reward]: the sum over all 125 paths of the probability of each times its reward (SAT eq. 11)."""
    paths = np.array(list(np.ndindex(L, L, L)))
    dynamics = scene.dynamics(len(paths))
    dynamics.begin(np.arange(len(paths)), np.full(len(paths), ROW))
    keys = attention.keys(scene.annotations)
    log_path, reward = torch.zeros(len(paths)), torch.zeros(len(paths))
    for step in range(3):
        alive = torch.from_numpy(~dynamics.episodes.ended)
        hidden = dynamics.episodes.hidden.clone()
        looks = torch.from_numpy(paths[:, step])
        scores = attention.scores(keys.expand(len(paths), -1, -1), hidden)
        log_path = log_path + log_probability(scores, looks) * alive
        reward += torch.from_numpy(dynamics.step(paths[:, step]).rewards).float()
        # A path that has ended stands for all ways to go on from it.
        log_path = log_path - (~alive) * np.log(L)
    assert float(log_path.exp().sum().detach()) == pytest.approx(1, abs=1e-5)
    assert reward.std() > 0.05  # where one looks makes a difference
    return flat_gradient(-(log_path.exp() * reward).sum(), attention)


@pytest.mark.parametrize("reward_to_go", [False, True], ids=["whole", "to go"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_expected_gradient_is_the_exact_one(scene, policy, baseline, reward_to_go):
    exact = exact_gradient(scene, policy)
    per_image, batches, images = K + (baseline == "self-critical"), 40, 60
    dynamics = scene.dynamics(images * per_image, per_image, shaped=reward_to_go)
    generator = torch.Generator().manual_seed(5)
    config = scene.captioner.decoder.config
    torch.manual_seed(1)
    value = Value(config.hidden_dim, config.feature_dim)  # untrained: a baseline need not be good to be unbiased
    annotations = scene.annotations.expand(images, -1, -1)
    with torch.no_grad():
        keys = policy.keys(annotations)
    gradients = []
    for _ in range(batches):
        made = roll_out(dynamics, policy, keys, np.full(images, ROW), generator, baseline == "self-critical")
        values = value(made.hidden, annotations, per_image).detach()
        gained = advantages(made, per_image, baseline, reward_to_go, average=0.3, values=values)
        scores = glimpse_scores(policy, annotations, made, per_image)
        log_policy = log_probability(scores, made.looks[made.alive])
        gradients.append(flat_gradient(-(gained[made.alive] * log_policy).sum() / (images * K), policy))
    drawn = torch.stack(gradients)
    mean, error = drawn.mean(0), drawn.std(0) / batches**0.5
    apart = ((mean - exact) / error.clamp(min=1e-7)).abs()
    assert exact.norm() > 5 * error.norm()  # the test can tell
    assert apart.max() < 4.5  # standard errors, of 9,600 captions
    assert apart.square().mean() < 2


def test_greedy_captions_only_compare(scene, policy):
    dynamics = scene.dynamics(6, 3, sampling=WordSampling("sample"))
    annotations = scene.annotations.expand(2, -1, -1)
    keys = policy.keys(annotations).detach()
    made = roll_out(dynamics, policy, keys, np.array([ROW, ROW]), torch.Generator().manual_seed(0), True)
    assert torch.equal(made.looks[:, 2], made.looks[:, 5])
    assert torch.equal(made.words[:, 2], made.words[:, 5])
    gained = advantages(made, 3, "self-critical")
    assert not gained[:, [2, 5]].any()
    whole = made.rewards.sum(0)
    assert torch.equal(gained[0, :2], whole[:2] - whole[2])


def test_what_is_to_come_is_what_is_credited():
    rewards = torch.tensor([[1.0, 0.0], [2.0, 3.0], [4.0, 0.0]])
    alive = torch.tensor([[True, True], [True, True], [True, False]])
    made = Rollouts(torch.zeros(3, 2, 1), torch.zeros(3, 2), torch.zeros(3, 2), rewards, alive)
    assert advantages(made, 2, "leave-one-out").tolist() == [[4.0, -4.0], [4.0, -4.0], [4.0, 0.0]]
    assert advantages(made, 2, "leave-one-out", True).tolist() == [[4.0, -4.0], [3.0, -3.0], [4.0, 0.0]]
    assert advantages(made, 2, "moving-average", average=2.0).tolist() == [[5.0, 1.0], [5.0, 1.0], [5.0, 0.0]]
    with pytest.raises(ValueError, match="'value' needs values"):
        advantages(made, 2, "value")


def test_rollouts_become_captions_and_back(scene, policy):
    dynamics = scene.dynamics(8, 4, sampling=WordSampling("sample"))
    keys = policy.keys(scene.annotations.expand(2, -1, -1)).detach()
    made = roll_out(dynamics, policy, keys, np.array([ROW, ROW]), torch.Generator().manual_seed(1))
    batch, looks, order = as_batch(made, np.array([ROW, ROW]), 4, 1)
    assert (batch.lengths.diff(dim=1) <= 0).all()
    for image in range(2):
        for place, which in enumerate(order[image].tolist()):
            slot, length = 4 * image + which, int(batch.lengths[image, place])
            assert batch.tokens[image, place, : length + 1].tolist() == [1, *made.words[:length, slot].tolist()]
            assert looks[image, place, :length].tolist() == made.looks[:length, slot].tolist()


def test_soft_attention_passes_gradcheck():
    torch.manual_seed(0)
    attention = AdditiveAttention(AttentionConfig(3, 4, 5)).double()
    decoder = CaptionDecoder(DecoderConfig(7, 3, embed_dim=4, hidden_dim=4, context_dim=3)).double().eval()
    annotations = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    hidden, cell = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def words(annotations, hidden, cell, *parameters):
        alpha = attention(annotations, hidden).softmax(-1)
        context = (alpha.unsqueeze(-1) * annotations).sum(1)
        logits, state = decoder.step(context, torch.tensor([1, 5]), DecoderState(hidden, cell))
        return logits.log_softmax(-1), state.hidden

    parameters = list(attention.parameters())
    assert gradcheck(words, (annotations, hidden, cell, *parameters))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def options(captioner_file, tmp_path):
    def build(**changed):
        usual = {
            "captioner": str(captioner_file),
            "limit": 12,
            "images": 4,
            "rollouts": 3,
            "updates": 4,
            "validate_every": 2,
            "attention_dim": 6,
            "threads": 1,
            "run_dir": tmp_path / "run",
        }
        return Options(**{**usual, **changed})

    return build


def figures(path):
    return list(csv.DictReader((path / "metrics.csv").open(newline="")))


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("words", [False, True], ids=["frozen", "words"])
def test_a_run_leaves_what_it_learned(options, tmp_path, baseline, words):
    main(options(baseline=baseline, train_decoder=words, reward_to_go=words, anchor=0.1 if words else 0.0))
    rows = figures(tmp_path / "run")
    assert [row["step"] for row in rows] == ["0", "2", "4"]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values() if value)
    assert int(float(rows[-1]["charts/steps"])) > 4 * 4 * 3
    assert load_attention(tmp_path / "run" / "attention.safetensors").config.attention_dim == 6
    assert (tmp_path / "run" / "captioner.safetensors").is_file() == words
    assert json.loads((tmp_path / "run" / "config.json").read_text())["baseline"] == baseline


def test_weights_move_and_only_those_that_should(options, captioner_file):
    before = load_captioner(captioner_file).decoder.state_dict()
    for words in (False, True):
        trainer = Trainer(settle(options(train_decoder=words)))
        start = {name: value.clone() for name, value in trainer.attention.state_dict().items()}
        trainer._improve(None)
        assert any(not torch.equal(value, start[name]) for name, value in trainer.attention.state_dict().items())
        after = trainer.captioner.decoder.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in after.items()) != words


@pytest.mark.parametrize("words", [False, True], ids=["frozen", "words"])
def test_a_resumed_run_ends_as_one_in_one_go(options, tmp_path, words):
    shared = {"train_decoder": words, "baseline": "value"}
    main(options(run_dir=tmp_path / "whole", **shared))
    trainer = Trainer(settle(options(run_dir=tmp_path / "parts", **shared)))
    from train.common.options import prepare
    from train.common.run_directory import RunDirectory

    settled = settle(options(run_dir=tmp_path / "parts", **shared))
    prepare(settled)
    directory = RunDirectory(settled.run_dir, settled, False)
    trainer = Trainer(settled)
    trainer._validate(directory, {})
    for _ in range(2):
        trainer._improve(directory)
    directory.save(trainer.state())
    directory.close()
    main(options(run_dir=tmp_path / "parts", resume=True, **shared))
    one, other = (load_attention(tmp_path / name / "attention.safetensors").state_dict() for name in ("whole", "parts"))
    last = [figures(tmp_path / name)[-1] for name in ("whole", "parts")]
    assert last[0]["charts/steps"] == last[1]["charts/steps"]
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"env": "Glimpse/Moon-v0"}, "unknown environment 'Glimpse/Moon-v0'"),
        ({"rollouts": 1}, "leave-one-out compares captions of one image and needs at least 2"),
        ({"anchor": 0.5}, "an anchor keeps trained words from drifting"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0, got -1.0"),
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"images": -2}, "images must be at least 1, got -2"),
        ({"reward": "praise"}, "unknown reward 'praise'"),
        ({"sharpen": 0.0}, "sharpen must be a positive number, got 0.0"),
        ({"feature_dropout": 1.0}, r"feature_dropout must be in \[0, 1\), got 1.0"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_named(options, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        main(options(**changed))
    assert not (tmp_path / "run" / "attention.safetensors").exists()


def test_attention_of_another_captioner_is_refused(options, tmp_path):
    path = tmp_path / "other.safetensors"
    save_attention(AdditiveAttention(AttentionConfig(3, 4, 5)), path)
    with pytest.raises(ValueError, match=r"lengths \(3, 4\), but the environment.s captioner has \(8, 12\)"):
        main(options(start=str(path)))
    with pytest.raises(FileNotFoundError, match="no agent and no file 'praise'"):
        main(options(start="praise"))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_checkpoint(options, tmp_path, monkeypatch):
    main(options())
    checkpoint = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    improve = Trainer._log_probabilities

    def broken(self, *arguments):
        log_policy, spread, likelihood = improve(self, *arguments)
        return log_policy * torch.nan, spread, likelihood

    monkeypatch.setattr(Trainer, "_log_probabilities", broken)
    state = json.loads((tmp_path / "run" / "config.json").read_text())
    state["updates"] = 8
    (tmp_path / "run" / "config.json").write_text(json.dumps(state))
    with pytest.raises(
        FloatingPointError, match=r"loss of update 5 is nan; the last good checkpoint is .*checkpoint\.pt"
    ):
        main(options(updates=8, resume=True))
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == checkpoint


def test_a_batch_of_one_caption_has_no_spread_to_divide_by(options, tmp_path):
    main(options(images=1, rollouts=1, baseline="moving-average", updates=6))
    assert max(abs(float(row["losses/policy"] or 0)) for row in figures(tmp_path / "run")) < 10


# --- what an update does ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_reward("odd-letters", odd_letters)


@pytest.mark.parametrize("words", [False, True], ids=["frozen", "words"])
def test_rewards_rise(options, words):
    rate = {"learning_rate": 0.03, "decoder_learning_rate": 0.02, "precision": "float32", "entropy_bonus": 0.0}
    shared = {"reward": "odd-letters", "updates": 60, "rollouts": 8, "train_decoder": words, **rate}
    trainer = Trainer(settle(options(**shared)))
    earned = [trainer._improve(None)["charts/reward"] for _ in range(60)]
    assert np.mean(earned[-10:]) > np.mean(earned[:10]) + 0.3


@pytest.mark.parametrize("changed", [{}, {"sharpen": 3.0, "feature_dropout": 0.4}], ids=["as is", "sharp and dropped"])
def test_words_and_glimpses_are_credited_with_their_own_probabilities(options, monkeypatch, changed):
    trainer = Trainer(settle(options(train_decoder=True, precision="float32", **changed)))
    rows = np.array([2, 5, 7, 11])
    if changed:
        trainer.features.draw(rows, np.random.default_rng(0))
    annotations = torch.from_numpy(trainer.features[rows]).float()
    keys = trainer.attention.keys(annotations).detach()
    made = roll_out(trainer.dynamics, trainer.attention, keys, rows, torch.Generator().manual_seed(0))
    log_policy, spread, likelihood = (part.detach() for part in trainer._log_probabilities(annotations, rows, made))
    decoder, vocabulary = trainer.captioner.decoder, trainer.captioner.vocabulary
    state = decoder.init_state(annotations.repeat_interleave(3, 0))
    last = torch.full((12,), vocabulary.start)
    with torch.no_grad():
        for step in range(len(made.looks)):
            alive = made.alive[step]
            torch.testing.assert_close(state.hidden[alive], made.hidden[step][alive], atol=1e-4, rtol=1e-4)
            scores = trainer.attention.scores(keys.repeat_interleave(3, 0), state.hidden)
            expected = log_probability(scores, made.looks[step])
            torch.testing.assert_close(log_policy[step][alive], expected[alive], atol=1e-4, rtol=1e-4)
            assert (spread[step][alive] > 0).all()
            context = annotations.repeat_interleave(3, 0)[torch.arange(12), made.looks[step]]
            logits, state = decoder.step(context, last, state)
            logits[:, list(vocabulary.silent)] = -torch.inf  # never said, so no part of what was drawn from
            said = logits.log_softmax(-1).gather(1, made.words[step].unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(likelihood[step][alive], said[alive], atol=1e-4, rtol=1e-4)
            assert not likelihood[step][~alive].any()
            last = made.words[step]
    monkeypatch.setattr(trainer, "options", settle(options()))
    frozen, _, nothing = trainer._log_probabilities(annotations, rows, made)
    torch.testing.assert_close(frozen.detach(), log_policy, atol=1e-4, rtol=1e-4)
    assert not nothing.any()


@pytest.mark.parametrize("words", [False, True], ids=["frozen", "words"])
def test_sharpened_scores_have_the_same_order_and_less_entropy(options, words):
    usual, sharp = (Trainer(settle(options(train_decoder=words, sharpen=factor))) for factor in (1.0, 4.0))
    for one in (usual, sharp):
        torch.manual_seed(0)
        one.attention.load_state_dict(usual.attention.state_dict())
    sharp._sharpen(4.0)
    annotations = torch.from_numpy(usual.features[[3]]).float()
    hidden = torch.randn(1, usual.captioner.decoder.config.hidden_dim)
    torch.testing.assert_close(sharp.attention(annotations, hidden), 4 * usual.attention(annotations, hidden))
    before, after = (one.captioner.decoder.output_word.weight for one in (usual, sharp))
    torch.testing.assert_close(after, before * (16 if words else 1))  # twice: when it was made, and above


def test_dropped_annotations_are_those_of_the_batch(options):
    trainer = Trainer(settle(options(feature_dropout=0.25)))
    whole = open_features(trainer.train_set, trainer.captioner.encoder)
    rows, again = np.array([4, 9, 1]), np.array([0, 4])
    trainer.features.draw(rows, np.random.default_rng(1))
    seen = trainer.features[rows]
    kept = seen != 0
    np.testing.assert_allclose(seen[kept], (whole[rows] / np.float16(0.75))[kept])
    assert 0.2 < 1 - kept.mean() < 0.3
    np.testing.assert_array_equal(trainer.features.at([9, 4], [3, 0]), seen[[1, 0], [3, 0]])
    device = torch.device("cpu")
    np.testing.assert_array_equal(
        trainer.features.glimpsed(rows, np.array([1, 2, 3]), device), seen[range(3), [1, 2, 3]]
    )
    np.testing.assert_array_equal(trainer.features.rows(torch.from_numpy(rows), device), seen)
    assert trainer.features.shape == whole.shape
    trainer.features.draw(again, np.random.default_rng(2))
    assert not np.array_equal(trainer.features[[4]], seen[:1])
    with pytest.raises(IndexError, match="an image that is not of the batch was asked for"):
        trainer.features.at([9], [0])


def test_greedy_captions_are_in_no_figure(options, monkeypatch):
    met = []

    def noted(*arguments):
        met.append(roll_out(*arguments))
        return met[-1]

    monkeypatch.setattr("train.reinforce.trainer.roll_out", noted)
    trainer = Trainer(settle(options(baseline="self-critical", reward="odd-letters")))
    told = trainer._improve(None)
    earned = met[0].rewards.sum(0).unflatten(0, (-1, 4))
    assert told["charts/reward"] == pytest.approx(float(earned[:, :3].mean()), rel=1e-5)
    assert trainer.steps == int(met[0].alive.unflatten(1, (-1, 4))[..., :3].sum())


def test_a_run_says_which_captioner_it_is_of(options, tmp_path, captioner_file):
    main(options(updates=1))
    assert find_start(str(tmp_path / "run"), "shapes") == (
        tmp_path / "run" / "attention.safetensors",
        str(captioner_file),
    )
    with pytest.raises(ValueError, match="was trained in Glimpse/Shapes-v0, not in Glimpse/Flickr8k-v0"):
        find_start(str(tmp_path / "run"), "flickr8k")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run .*empty' has left no attention\.safetensors"):
        find_start(str(tmp_path / "empty"), "shapes")


@pytest.mark.parametrize("longer", [False, True], ids=["too short", "long enough"])
def test_what_a_caption_adds_to_corpus_bleu_is_its_derivative(longer):
    rng = np.random.default_rng(0)
    words = list("abcdefgh")
    references = [[rng.choice(words, 9).tolist() for _ in range(3)] for _ in range(30)]
    said = [[*one[0][:5], *rng.choice(words, 7 if longer else 2)] for one in references]
    each = corpus_statistics(references, said)
    counts = torch.ones(30, dtype=torch.float64, requires_grad=True)  # how often each caption stands in the corpus
    log_bleu = bleu(BleuStatistics(*((counts @ part) for part in each))).log()
    (slopes,) = torch.autograd.grad(log_bleu, counts)
    mean = BleuStatistics(*(part.mean(0) for part in each))
    gains = corpus_gains(each, mean)
    torch.testing.assert_close(gains, 30 * slopes)
    assert gains.std() > 0.1


def test_corpus_bleu_is_paid_at_the_end_of_captions(options):
    trainer = Trainer(settle(options(train_decoder=True, reward="corpus-bleu")))
    told = [trainer._improve(None) for _ in range(3)]
    assert all(np.isfinite(list(one.values())).all() for one in told)
    state = trainer.state()
    again = Trainer(settle(options(train_decoder=True, reward="corpus-bleu")))
    again.load(state)
    assert all(torch.equal(one, other) for one, other in zip(again.corpus, trainer.corpus, strict=True))
    with pytest.raises(ValueError, match="leave out --reward-to-go"):
        settle(options(reward="corpus-bleu", reward_to_go=True))
