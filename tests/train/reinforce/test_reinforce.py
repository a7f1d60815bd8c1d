"""REINFORCE's expected gradient is the gradient of the expected reward; the command trains, resumes and refuses."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from agents.attention import AdditiveAttention, AttentionConfig, load_attention, save_attention
from agents.attention_agents import log_probability
from agents.loading import find_attention
from glimpse_env.core.vocabulary import Vocabulary
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
from train.common.distributed import Processes
from train.common.options import prepare
from train.common.run_directory import RunDirectory
from train.reinforce.baselines import BASELINES
from train.reinforce.corpus_bleu import CorpusBleuReward, corpus_gains
from train.reinforce.trainer import Options, Trainer, main, resolve_defaults
from train.reinforce.trajectories import Trajectories, as_caption_batch, glimpse_scores, roll_out

L, ROW, K = 5, 0, 4


def odd_letters(references, words, ended):
    """A reward that differs between paths, and pays every word."""
    return sum(len(word) % 3 for word in words) / 3


class OneScene:
    """The first scene of val with five of its locations, so that all paths can be counted."""

    def __init__(self, captioner):
        shapes = Shapes("val")
        features = open_features(shapes, captioner.encoder)
        self.references = SplitReferences(shapes, captioner.vocabulary)
        self.features = FeatureTable(features[: ROW + 1][:, [3, 10, 17, 24, 40]])
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
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(module.parameters()))])


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
        locations = torch.from_numpy(paths[:, step])
        scores = attention.scores(keys.expand(len(paths), -1, -1), hidden)
        log_path = log_path + log_probability(scores, locations) * alive
        reward += torch.from_numpy(dynamics.step(paths[:, step]).rewards).float()
        # A path that has ended stands for all ways to go on from it.
        log_path = log_path - (~alive) * np.log(L)
    assert float(log_path.exp().sum().detach()) == pytest.approx(1, abs=1e-5)
    assert reward.std() > 0.05  # the reward depends on the path
    return flat_gradient(-(log_path.exp() * reward).sum(), attention)


@pytest.mark.parametrize("reward_to_go", [False, True], ids=["whole", "to go"])
@pytest.mark.parametrize("name", BASELINES)
def test_the_expected_gradient_is_the_exact_one(scene, policy, name, reward_to_go):
    exact = exact_gradient(scene, policy)
    per_image, batches, images = K + (name == "self-critical"), 40, 60
    dynamics = scene.dynamics(images * per_image, per_image, shaped=reward_to_go)
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(1)
    baseline = BASELINES[name](scene.captioner.decoder.config, reward_to_go)  # an untrained value is unbiased, too
    baseline.average = 0.3
    annotations = scene.annotations.expand(images, -1, -1)
    with torch.no_grad():
        keys = policy.keys(annotations)
    gradients = []
    for _ in range(batches):
        sample = roll_out(dynamics, policy, keys, np.full(images, ROW), generator, baseline.greedy_last)
        advantages = advantages_of(baseline, sample, annotations.mean(1))
        scores = glimpse_scores(policy, annotations, sample)
        log_policy = log_probability(scores, sample.locations[sample.alive])
        gradients.append(flat_gradient(-(advantages[sample.alive] * log_policy).sum() / (images * K), policy))
    gradients = torch.stack(gradients)
    mean, error = gradients.mean(0), gradients.std(0) / batches**0.5
    deviation = ((mean - exact) / error.clamp(min=1e-7)).abs()
    assert exact.norm() > 5 * error.norm()  # the test has power
    assert deviation.max() < 4.5  # standard errors, of 9,600 captions
    assert deviation.square().mean() < 2


def advantages_of(baseline, sample, means=None):
    returns = sample.returns(baseline.reward_to_go)
    return (returns - baseline(sample, returns, means).detach()) * sample.alive


def test_greedy_captions_only_compare(scene, policy):
    dynamics = scene.dynamics(6, 3, sampling=WordSampling("sample"))
    keys = policy.keys(scene.annotations.expand(2, -1, -1)).detach()
    sample = roll_out(dynamics, policy, keys, np.array([ROW, ROW]), torch.Generator().manual_seed(0), True)
    assert torch.equal(sample.locations[:, 0, 2], sample.locations[:, 1, 2])
    assert torch.equal(sample.words[:, 0, 2], sample.words[:, 1, 2])
    assert torch.equal(sample.sampled[..., :2], sample.alive[..., :2])
    assert not sample.sampled[..., 2].any()
    advantages = advantages_of(BASELINES["self-critical"](scene.captioner.decoder.config, False), sample)
    assert not advantages[..., 2].any()
    rewards = sample.rewards.sum(0)
    assert torch.equal(advantages[0, :, :2], rewards[:, :2] - rewards[:, 2:])


@pytest.mark.parametrize(
    ("name", "reward_to_go", "expected"),
    [
        ("leave-one-out", False, [[4.0, -4.0], [4.0, -4.0], [4.0, 0.0]]),
        ("leave-one-out", True, [[4.0, -4.0], [3.0, -3.0], [4.0, 0.0]]),
        ("moving-average", False, [[5.0, 1.0], [5.0, 1.0], [5.0, 0.0]]),
    ],
)
def test_returns_less_their_baseline_are_advantages(captioner, name, reward_to_go, expected):
    rewards = torch.tensor([[[1.0, 0.0]], [[2.0, 3.0]], [[4.0, 0.0]]])
    alive = torch.tensor([[[True, True]], [[True, True]], [[True, False]]])
    sample = Trajectories(*[torch.zeros(3, 1, 2)] * 3, rewards, alive, alive)
    baseline = BASELINES[name](captioner.decoder.config, reward_to_go)
    baseline.observe(2.0)
    assert advantages_of(baseline, sample)[:, 0].tolist() == expected


def test_a_learned_value_reads_the_mean_of_the_locations_that_an_image_has(options, monkeypatch):
    trainer = Trainer(resolve_defaults(options(baseline="value")))
    masks = np.random.default_rng(0).random((len(trainer.features), trainer.features.shape[1])) < 0.5
    masks[:, 0] = True
    monkeypatch.setattr(trainer.features, "masks", masks)
    means = []
    hook = trainer.baseline.network.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0]))
    trainer.train_batch(None)
    hook.remove()
    dimension, hidden = trainer.features.shape[2], trainer.captioner.decoder.config.hidden_dim
    rows = np.random.default_rng([trainer.options.seed, 0]).choice(trainer.rows, trainer.images, replace=False)
    for index, row in enumerate(rows):
        expected = trainer.features[np.array([row])][0][masks[row]].astype(np.float32).mean(0)
        np.testing.assert_allclose(means[0][0, index, 0, hidden:].detach(), expected, atol=1e-5)
    assert means[0].shape[-1] == hidden + dimension


def test_trajectories_become_captions_and_back(scene, policy):
    dynamics = scene.dynamics(8, 4, sampling=WordSampling("sample"))
    keys = policy.keys(scene.annotations.expand(2, -1, -1)).detach()
    sample = roll_out(dynamics, policy, keys, np.array([ROW, ROW]), torch.Generator().manual_seed(1))
    batch, locations, order = as_caption_batch(sample, np.array([ROW, ROW]), 1)
    assert (batch.lengths.diff(dim=1) <= 0).all()
    for image in range(2):
        for rank, k in enumerate(order[image].tolist()):
            length = int(batch.lengths[image, rank])
            assert batch.tokens[image, rank, : length + 1].tolist() == [1, *sample.words[:length, image, k].tolist()]
            assert locations[image, rank, :length].tolist() == sample.locations[:length, image, k].tolist()


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


def metrics(path):
    return list(csv.DictReader((path / "metrics.csv").open(newline="")))


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("words", [False, True], ids=["frozen", "words"])
def test_a_run_leaves_what_it_learned(options, tmp_path, baseline, words):
    main(options(baseline=baseline, train_decoder=words, reward_to_go=words, anchor=0.1 if words else 0.0))
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == ["0", "2", "4"]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values() if value)
    assert int(float(rows[-1]["charts/steps"])) > 4 * 4 * 3
    assert load_attention(tmp_path / "run" / "attention.safetensors").config.attention_dim == 6
    assert (tmp_path / "run" / "captioner.safetensors").is_file() == words
    assert json.loads((tmp_path / "run" / "config.json").read_text())["baseline"] == baseline


def test_weights_move_and_only_those_that_should(options, captioner_file):
    before = load_captioner(captioner_file).decoder.state_dict()
    for words in (False, True):
        trainer = Trainer(resolve_defaults(options(train_decoder=words)))
        start = {name: value.clone() for name, value in trainer.attention.state_dict().items()}
        trainer.train_batch(None)
        assert any(not torch.equal(value, start[name]) for name, value in trainer.attention.state_dict().items())
        after = trainer.captioner.decoder.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in after.items()) != words


@pytest.mark.parametrize("words", [False, True], ids=["frozen", "words"])
def test_a_resumed_run_ends_as_one_in_one_go(options, tmp_path, words):
    shared = {"train_decoder": words, "baseline": "value"}
    main(options(run_dir=tmp_path / "whole", **shared))
    resolved = resolve_defaults(options(run_dir=tmp_path / "parts", **shared))
    prepare(resolved)
    directory = RunDirectory(resolved.run_dir, resolved, False)
    trainer = Trainer(resolved)
    trainer._validate(directory, {})
    for _ in range(2):
        trainer.train_batch(directory)
    trainer.save(directory)
    directory.close()
    main(options(run_dir=tmp_path / "parts", resume=True, **shared))
    runs = [tmp_path / name for name in ("whole", "parts")]
    weights, resumed = (load_attention(run / "attention.safetensors").state_dict() for run in runs)
    assert metrics(runs[0])[-1]["charts/steps"] == metrics(runs[1])[-1]["charts/steps"]
    for name in weights:
        assert torch.equal(weights[name], resumed[name]), name


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
    log_probabilities = Trainer._log_probabilities

    def broken(self, *arguments):
        result = log_probabilities(self, *arguments)
        return result._replace(locations=result.locations * torch.nan)

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
    assert max(abs(float(row["losses/policy"] or 0)) for row in metrics(tmp_path / "run")) < 10


# --- what an update does ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_reward("odd-letters", odd_letters)


@pytest.mark.parametrize("words", [False, True], ids=["frozen", "words"])
def test_rewards_rise(options, words):
    rate = {"learning_rate": 0.03, "decoder_learning_rate": 0.02, "precision": "float32", "entropy_bonus": 0.0}
    shared = {"reward": "odd-letters", "updates": 60, "rollouts": 8, "train_decoder": words, **rate}
    trainer = Trainer(resolve_defaults(options(**shared)))
    rewards = [trainer.train_batch(None)["charts/reward"] for _ in range(60)]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.3


@pytest.mark.parametrize("changed", [{}, {"sharpen": 3.0, "feature_dropout": 0.4}], ids=["as is", "sharp and dropped"])
def test_words_and_glimpses_are_credited_with_their_own_probabilities(options, monkeypatch, changed):
    trainer = Trainer(resolve_defaults(options(train_decoder=True, precision="float32", **changed)))
    rows = np.array([2, 5, 7, 11])
    if changed:
        trainer.features.draw(rows, np.random.default_rng(0))
    annotations = torch.from_numpy(trainer.features[rows]).float()
    keys = trainer.attention.keys(annotations).detach()
    sample = roll_out(trainer.dynamics, trainer.attention, keys, rows, torch.Generator().manual_seed(0))
    computed = trainer._log_probabilities(annotations, rows, sample)
    log_alpha, log_words, entropies = (values.detach().flatten(1) for values in computed)
    decoder, vocabulary = trainer.captioner.decoder, trainer.captioner.vocabulary
    state = decoder.init_state(annotations.repeat_interleave(3, 0))
    last = torch.full((12,), vocabulary.start)
    with torch.no_grad():
        for step in range(len(sample.alive)):
            alive, locations, words = (
                values[step].flatten() for values in (sample.alive, sample.locations, sample.words)
            )
            hidden = sample.hidden[step].flatten(0, 1)
            torch.testing.assert_close(state.hidden[alive], hidden[alive], atol=1e-4, rtol=1e-4)
            scores = trainer.attention.scores(keys.repeat_interleave(3, 0), state.hidden)
            expected = log_probability(scores, locations)
            torch.testing.assert_close(log_alpha[step][alive], expected[alive], atol=1e-4, rtol=1e-4)
            assert (entropies[step][alive] > 0).all()
            context = annotations.repeat_interleave(3, 0)[torch.arange(12), locations]
            logits, state = decoder.step(context, last, state)
            logits[:, list(vocabulary.suppressed)] = -torch.inf  # they have no probability in the sampling either
            expected = logits.log_softmax(-1).gather(1, words.unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(log_words[step][alive], expected[alive], atol=1e-4, rtol=1e-4)
            assert not log_words[step][~alive].any()
            last = words
    monkeypatch.setattr(trainer, "options", resolve_defaults(options()))
    frozen = trainer._log_probabilities(annotations, rows, sample)
    torch.testing.assert_close(frozen.locations.detach().flatten(1), log_alpha, atol=1e-4, rtol=1e-4)
    assert not frozen.words.any()


@pytest.mark.parametrize("words", [False, True], ids=["frozen", "words"])
def test_sharpened_scores_have_the_same_order_and_less_entropy(options, words):
    usual, sharp = (Trainer(resolve_defaults(options(train_decoder=words, sharpen=factor))) for factor in (1.0, 4.0))
    sharp.attention.load_state_dict(usual.attention.state_dict())
    torch.manual_seed(0)
    sharp._scale_scores(4.0)
    annotations = torch.from_numpy(usual.features[[3]]).float()
    hidden = torch.randn(1, usual.captioner.decoder.config.hidden_dim)
    torch.testing.assert_close(sharp.attention(annotations, hidden), 4 * usual.attention(annotations, hidden))
    before, after = (trainer.captioner.decoder.output_word.weight for trainer in (usual, sharp))
    torch.testing.assert_close(after, before * (16 if words else 1))  # twice: by the constructor, and above


def test_dropped_annotations_are_those_of_the_batch(options):
    trainer = Trainer(resolve_defaults(options(feature_dropout=0.25)))
    table = open_features(trainer.train_set, trainer.captioner.encoder)
    rows, device = np.array([4, 9, 1]), torch.device("cpu")
    trainer.features.draw(rows, np.random.default_rng(1))
    batch = trainer.features[rows]
    nonzero = batch != 0
    np.testing.assert_allclose(batch[nonzero], (table[rows] / np.float16(0.75))[nonzero])
    assert 0.2 < 1 - nonzero.mean() < 0.3
    np.testing.assert_array_equal(trainer.features.gather([9, 4], [3, 0]), batch[[1, 0], [3, 0]])
    glimpses = trainer.features.gather_tensor(rows, np.array([1, 2, 3]), device)
    np.testing.assert_array_equal(glimpses, batch[range(3), [1, 2, 3]])
    np.testing.assert_array_equal(trainer.features.rows(torch.from_numpy(rows), device), batch)
    assert trainer.features.shape == table.shape
    trainer.features.draw(np.array([0, 4]), np.random.default_rng(2))
    assert not np.array_equal(trainer.features[[4]], batch[:1])
    with pytest.raises(IndexError, match="an image that is not of the batch was asked for"):
        trainer.features.gather([9], [0])


def test_greedy_captions_are_in_no_figure(options, monkeypatch):
    samples = []

    def recorded(*arguments):
        samples.append(roll_out(*arguments))
        return samples[-1]

    monkeypatch.setattr("train.reinforce.trainer.roll_out", recorded)
    trainer = Trainer(resolve_defaults(options(baseline="self-critical", reward="odd-letters")))
    reward = trainer.train_batch(None)["charts/reward"]
    assert reward == pytest.approx(float(samples[0].rewards.sum(0)[:, :3].mean()), rel=1e-5)
    assert trainer.steps == int(samples[0].alive[..., :3].sum())


def test_a_run_says_which_captioner_it_is_of(options, tmp_path, captioner_file):
    main(options(updates=1))
    file, captioner = find_attention(str(tmp_path / "run"), "shapes")
    assert (file.path, captioner) == (tmp_path / "run" / "attention.safetensors", str(captioner_file))
    with pytest.raises(ValueError, match="was trained in Glimpse/Shapes-v0, not in Glimpse/Flickr8k-v0"):
        find_attention(str(tmp_path / "run"), "flickr8k")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run .*empty' has left no attention\.safetensors"):
        find_attention(str(tmp_path / "empty"), "shapes")


@pytest.mark.parametrize("longer", [False, True], ids=["too short", "long enough"])
def test_what_a_caption_adds_to_corpus_bleu_is_its_derivative(longer):
    rng = np.random.default_rng(0)
    words = list("abcdefgh")
    references = [[rng.choice(words, 9).tolist() for _ in range(3)] for _ in range(30)]
    captions = [[*first[:5], *rng.choice(words, 7 if longer else 2)] for first, *_ in references]
    counts = corpus_statistics(references, captions)
    copies = torch.ones(30, dtype=torch.float64, requires_grad=True)  # how often each caption stands in the corpus
    log_bleu = bleu(BleuStatistics(*((copies @ count) for count in counts))).log()
    (slopes,) = torch.autograd.grad(log_bleu, copies)
    gains = corpus_gains(counts, BleuStatistics(*(count.mean(0) for count in counts)))
    torch.testing.assert_close(gains, 30 * slopes)
    assert gains.std() > 0.1


def test_corpus_bleu_does_not_count_silent_steps():
    vocabulary = Vocabulary(["<blank>", *"abcde"])
    caption = [*"ab", "<blank>", *"cde", "<end>"]
    rewards = []
    for words in (caption, [word for word in caption if word != "<blank>"]):
        ids = torch.tensor(vocabulary.encode(words)).reshape(-1, 1, 1)
        alive, zeros = torch.ones_like(ids, dtype=torch.bool), torch.zeros(ids.shape)
        sample = Trajectories(zeros.unsqueeze(-1), ids, ids, zeros, alive, alive)
        scene = SimpleNamespace(references=lambda row: [list("abcde")])
        paid = CorpusBleuReward(scene, vocabulary)
        rewards.append(paid.pay(sample, np.array([0]), Processes()).rewards)
        assert float(paid.mean.length) == 5
    assert torch.equal(rewards[0][-1], rewards[1][-1])


def test_corpus_bleu_is_paid_at_the_end_of_captions(options):
    trainer = Trainer(resolve_defaults(options(train_decoder=True, reward="corpus-bleu")))
    for _ in range(3):
        assert np.isfinite(list(trainer.train_batch(None).values())).all()
    resumed = Trainer(resolve_defaults(options(train_decoder=True, reward="corpus-bleu")))
    resumed.load(trainer.state())
    pairs = zip(resumed.corpus_bleu.mean, trainer.corpus_bleu.mean, strict=True)
    assert all(torch.equal(loaded, saved) for loaded, saved in pairs)
    with pytest.raises(ValueError, match="leave out --reward-to-go"):
        resolve_defaults(options(reward="corpus-bleu", reward_to_go=True))
