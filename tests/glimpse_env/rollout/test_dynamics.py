"""The transition: batches equal singles, words equal an independent loop over the decoder, rewards add up."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction

from glimpse_env.datasets.shapes import Shapes
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.features.build import open_features
from glimpse_env.metrics.bleu import order_weights, sentence_bleu
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward, WeightedSum
from glimpse_env.rollout.dynamics import MAX_CAPTION_LENGTH, CaptionDynamics
from glimpse_env.rollout.word_sampling import WordSampling
from tests.conftest import build_captioner

L, T = 49, 20
ROWS = [3, 17, 0, 256, 999]
SAMPLINGS = [WordSampling(), WordSampling("sample"), WordSampling("top-k", top_k=4), WordSampling("top-p", top_p=0.8)]


@pytest.fixture(scope="module")
def make(captioner):
    """Makes dynamics over the tiny captioner, all on one feature table."""
    dataset = Shapes("val")
    features, references = open_features(dataset, captioner.encoder), SplitReferences(dataset, captioner.vocabulary)

    def build(count, attention="hard", **options):
        options = {"reward": BleuReward(), **options}
        reward = options.pop("reward")
        return CaptionDynamics(
            captioner, features, references, reward, num_episodes=count, attention=attention, **options
        )

    return build


def random_actions(rng, attention, count, steps=T):
    if attention == "hard":
        return rng.integers(L, size=(steps, count))
    peaked = rng.dirichlet(np.full(L, 0.05), size=(steps, count))  # flat weights would make every word the same
    return (peaked * rng.uniform(0.2, 1, (steps, count, 1))).astype(np.float32)


def play(dynamics, rows, actions, uniforms=None):
    """Words (T, B), rewards (T, B) and ends (T, B) of whole episodes."""
    dynamics.begin(np.arange(len(rows)), rows)
    steps = [dynamics.step(action, None if uniforms is None else uniforms[t]) for t, action in enumerate(actions)]
    return tuple(np.stack([np.asarray(array) for array in arrays]) for arrays in zip(*steps, strict=True))


def letters(references, words, ended):
    """A reward that is no BLEU: counts letters, and 100 for ending, so that every word's pay is known."""
    return float(sum(map(len, words)) + 100 * ended)


# --- against other ways to say the same -------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["hard", "soft"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: sampling.method)
def test_a_batch_is_its_episodes_one_by_one(make, attention, sampling):
    rng = np.random.default_rng(0)
    actions, uniforms = random_actions(rng, attention, 5), rng.random((T, 5))
    options = {"attention": attention, "sampling": sampling, "shaped": True}
    words, rewards, ended = play(make(5, **options), ROWS, actions, uniforms)
    for slot, row in enumerate(ROWS):
        alone = play(make(1, **options), [row], actions[:, slot : slot + 1], uniforms[:, slot : slot + 1])
        assert np.array_equal(alone[0][:, 0], words[:, slot])
        np.testing.assert_allclose(alone[1][:, 0], rewards[:, slot], atol=1e-12)
        assert np.array_equal(alone[2][:, 0], ended[:, slot])


@pytest.mark.parametrize("init", ["zeros", "mean"])
@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_words_are_the_decoders(make, captioner, attention, init):
    dynamics = make(5, attention)
    if init == "mean":
        captioner = build_captioner("mean")
        dynamics = mean_start_dynamics(attention, captioner)
    decoder, vocabulary, features = captioner.decoder, dynamics.vocabulary, dynamics.features
    actions = random_actions(np.random.default_rng(1), attention, 5)
    words, _, _ = play(dynamics, ROWS, actions)
    unsayable = [vocabulary.pad, vocabulary.start, vocabulary.unk]
    for slot, row in enumerate(ROWS):
        annotations = features[row].astype(np.float64)  # (L, D)
        state = decoder.init_state(torch.from_numpy(annotations).float().unsqueeze(0))
        word, expected = vocabulary.start, []
        for action in actions[:, slot]:
            if attention == "hard":
                context = annotations[action]
            else:
                context = sum(map(np.multiply, action / action.sum(), annotations))
            logits, state = decoder.step(torch.tensor(context).float()[None], torch.tensor([word]), state)
            scores = logits[0].tolist()
            word = max((w for w in range(len(scores)) if w not in unsayable), key=scores.__getitem__)
            expected.append(word)
            if word == vocabulary.end:
                break
        assert words[: len(expected), slot].tolist() == expected
        assert (words[len(expected) :, slot] == vocabulary.pad).all()
        assert dynamics.caption(slot) == [vocabulary.words[w] for w in expected if w != vocabulary.end]
    assert len({tuple(column) for column in words.T.tolist()}) >= 4  # the images and actions make a difference


def mean_start_dynamics(attention, captioner):
    dataset = Shapes("val")
    features, references = open_features(dataset, captioner.encoder), SplitReferences(dataset, captioner.vocabulary)
    return CaptionDynamics(captioner, features, references, BleuReward(), num_episodes=5, attention=attention)


@pytest.mark.parametrize("narrow", [WordSampling("sample", temperature=1e-6), WordSampling("top-k", top_k=1)], ids=str)
def test_narrow_draws_are_greedy(make, narrow):
    rng = np.random.default_rng(2)
    actions, uniforms = random_actions(rng, "hard", 5), rng.random((T, 5))
    greedy = play(make(5), ROWS, actions)
    drawn = play(make(5, sampling=narrow), ROWS, actions, uniforms)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(greedy, drawn, strict=True))


def test_first_words_are_drawn_from_the_softmax(make, captioner):
    count, row, location = 4000, 5, 11
    dynamics = make(count, sampling=WordSampling("sample", temperature=0.5))
    dynamics.begin(np.arange(count), np.full(count, row))
    drawn = dynamics.step(np.full(count, location), np.random.default_rng(0).random(count)).words
    context = torch.from_numpy(dynamics.features[row][location]).float()[None]
    vocabulary, decoder = captioner.vocabulary, captioner.decoder
    state = decoder.init_state(torch.from_numpy(dynamics.features[[row]]).float())
    logits = decoder.step(context, torch.tensor([vocabulary.start]), state)[0][0].double().numpy()
    logits[[vocabulary.pad, vocabulary.start, vocabulary.unk]] = -np.inf
    expected = np.exp((logits - logits.max()) / 0.5)
    expected *= count / expected.sum()
    counts = np.bincount(drawn, minlength=len(vocabulary))
    assert not counts[expected == 0].any()
    common = expected >= 5
    chi2 = ((counts - expected)[common] ** 2 / expected[common]).sum()
    degrees = common.sum() - 1
    assert degrees >= 5
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees)


# --- actions ----------------------------------------------------------------------------------------------------------


def test_a_one_hot_weight_is_a_hard_glimpse(make):
    locations = random_actions(np.random.default_rng(3), "hard", 5)
    hard = play(make(5), ROWS, locations)
    soft = play(make(5, "soft"), ROWS, np.eye(L, dtype=np.float32)[locations])
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(hard, soft, strict=True))


@pytest.mark.parametrize("scale", [0.5, 1e-3, 1e-20])
def test_only_the_proportions_of_weights_matter(make, scale):
    weights = random_actions(np.random.default_rng(4), "soft", 5)
    plain = play(make(5, "soft"), ROWS, weights)
    scaled = play(make(5, "soft"), ROWS, weights * np.float32(scale))
    assert np.array_equal(plain[0], scaled[0])


def test_no_preference_is_uniform(make):
    nothing = play(make(5, "soft"), ROWS, np.zeros((T, 5, L), np.float32))
    uniform = play(make(5, "soft"), ROWS, np.full((T, 5, L), 1 / L, np.float32))
    assert np.array_equal(nothing[0], uniform[0])
    mixed = np.zeros((2, L), np.float32)
    mixed[1, 7] = 0.25
    dynamics = make(2, "soft")
    assert np.array_equal(dynamics.weights(mixed), np.stack([np.full(L, np.float32(1) / L), np.eye(L)[7]], dtype="f4"))


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_weights_of_any_action_sum_to_one_and_leave_it_alone(make, attention):
    dynamics = make(5, attention)
    actions = random_actions(np.random.default_rng(5), attention, 5)[0]
    original = actions.copy()
    weights = dynamics.weights(actions)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    if attention == "hard":
        assert weights.argmax(1).tolist() == actions.tolist()
        assert (np.sort(weights, axis=1)[:, :-1] == 0).all()
    else:
        np.testing.assert_allclose(weights, original / original.sum(1, keepdims=True), rtol=1e-5)
        dynamics.begin(np.arange(5), ROWS)
        dynamics.step(actions)
    assert np.array_equal(actions, original)


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_one_bad_action_stops_the_whole_batch(make, attention):
    dynamics = make(5, attention, sampling=WordSampling("sample"))
    rng = np.random.default_rng(6)
    actions, uniforms = random_actions(rng, attention, 5), rng.random((T, 5))
    dynamics.begin(np.arange(5), ROWS)
    dynamics.step(actions[0], uniforms[0])
    before = dynamics.snapshot().episodes
    bad = actions[1].copy()
    bad[(3,) if attention == "hard" else (3, 8)] = -1
    with pytest.raises(InvalidAction, match="-1"):
        dynamics.step(bad, uniforms[1])
    assert all(np.array_equal(current, earlier) for current, earlier in zip(dynamics.episodes, before, strict=True))


@pytest.mark.parametrize("actions", [[1, 2, 3], [[1], [2], [3], [4], [5]], 4, [0.0] * 5, [True] * 5, [None] * 5])
def test_locations_are_one_integer_an_episode(make, actions):
    with pytest.raises(InvalidAction):
        make(5).check_actions(actions)


# --- episodes ---------------------------------------------------------------------------------------------------------


def test_ended_episodes_are_silent_and_earn_nothing(make, captioner):
    dynamics = make(40, sampling=WordSampling("sample"), max_caption_length=8, shaped=True)
    rng = np.random.default_rng(7)
    actions, uniforms = random_actions(rng, "hard", 40, steps=10), rng.random((10, 40))
    words, rewards, ended = play(dynamics, np.arange(40), actions, uniforms)
    end, pad = captioner.vocabulary.end, captioner.vocabulary.pad
    lengths = []
    for slot in range(40):
        ids = words[:, slot].tolist()
        length = ids.index(end) + 1 if end in ids else 8
        lengths.append(length)
        assert pad not in ids[:length]
        assert ids[length:] == [pad] * (10 - length)
        assert (rewards[length:, slot] == 0).all()
        assert ended[:, slot].tolist() == [t >= length - 1 for t in range(10)]
        assert dynamics.has_end(slot) == (end in ids)
    assert min(lengths) < 8 == max(lengths)  # both ways to end were met
    assert dynamics.episodes.lengths.tolist() == lengths
    np.testing.assert_array_equal(dynamics.episodes.attention_sum.sum(1), lengths)


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_begin_leaves_other_episodes_alone(make, attention):
    rng = np.random.default_rng(8)
    actions = random_actions(rng, attention, 5)
    expected = play(make(5, attention), ROWS, actions)[0]
    dynamics = make(5, attention)
    dynamics.begin(np.arange(5), ROWS)
    steps = [dynamics.step(actions[t]).words for t in range(6)]
    before = dynamics.snapshot().episodes
    dynamics.begin([1, 3], [40, 41])
    for name, current, earlier in zip(before._fields, dynamics.episodes, before, strict=True):
        assert np.array_equal(current[[0, 2, 4]], earlier[[0, 2, 4]]), name
    steps += [dynamics.step(actions[t]).words for t in range(6, T)]
    assert np.array_equal(np.stack(steps)[:, [0, 2, 4]], expected[:, [0, 2, 4]])
    fresh = play(make(2, attention), [40, 41], actions[6:][:, [1, 3]])[0]
    assert np.array_equal(np.stack(steps)[6:, [1, 3]], fresh)
    assert dynamics.episodes.rows.tolist() == [ROWS[0], 40, ROWS[2], 41, ROWS[4]]


def test_beginning_is_not_moving(make):
    dynamics = make(3)
    assert dynamics.episodes.ended.all()
    dynamics.begin([1], [4])
    assert dynamics.episodes.ended.tolist() == [True, False, True]
    transition = dynamics.step([0, 0, 0])
    pad = dynamics.vocabulary.pad
    assert [word == pad for word in transition.words.tolist()] == [True, False, True]


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_shaped_rewards_add_up_to_the_terminal_one(make, attention):
    rng = np.random.default_rng(9)
    rows = np.arange(30)
    actions, uniforms = random_actions(rng, attention, 30), rng.random((T, 30))
    plain = play(make(30, attention, sampling=WordSampling("sample")), rows, actions, uniforms)
    shaped = play(make(30, attention, sampling=WordSampling("sample"), shaped=True), rows, actions, uniforms)
    assert np.array_equal(plain[0], shaped[0])
    np.testing.assert_allclose(shaped[1].sum(0), plain[1].sum(0), rtol=0, atol=1e-9)
    assert ((plain[1] != 0).sum(0) <= 1).all()
    assert ((shaped[1] != 0).sum(0) > 1).any()


def test_every_step_pays_the_change_of_a_reward_function(make):
    rng = np.random.default_rng(10)
    actions, uniforms = random_actions(rng, "hard", 20), rng.random((T, 20))
    dynamics = make(20, reward=letters, shaped=True, sampling=WordSampling("sample"))
    words, rewards, _ = play(dynamics, np.arange(20), actions, uniforms)
    vocabulary = dynamics.vocabulary
    pay = {word: float(len(vocabulary.words[word])) for word in range(len(vocabulary))}
    pay |= {vocabulary.pad: 0.0, vocabulary.end: 100.0}
    assert (words == vocabulary.end).any()
    assert rewards.tolist() == [[pay[word] for word in step] for step in words.tolist()]


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_restore_goes_back_and_a_snapshot_stays_what_it_was(make, attention):
    dynamics = make(5, attention, shaped=True)
    actions = random_actions(np.random.default_rng(11), attention, 5)
    dynamics.begin(np.arange(5), ROWS)
    for action in actions[:4]:
        dynamics.step(action)
    saved = dynamics.snapshot()
    futures = []
    for _ in range(3):
        futures.append([(t.words.tolist(), t.rewards.tolist()) for t in map(dynamics.step, actions[4:])])
        dynamics.restore(saved)
    assert futures[0] == futures[1] == futures[2]
    assert all(map(np.array_equal, dynamics.episodes, saved.episodes))
    with pytest.raises(ValueError, match=r"hidden of shape \(5, 12\), expected \(4, 12\)"):
        make(4, attention, shaped=True).restore(saved)


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_a_snapshot_goes_onto_episodes_of_other_images(make, attention):
    actions = random_actions(np.random.default_rng(12), attention, 5)
    dynamics, second = make(5, attention, shaped=True), make(5, attention, shaped=True)
    dynamics.begin(np.arange(5), ROWS)
    for action in actions[:3]:
        dynamics.step(action)
    saved = dynamics.snapshot()
    expected = [(t.words.tolist(), t.rewards.tolist()) for t in map(dynamics.step, actions[3:])]
    for target in (dynamics, second, dynamics):  # once more: a restored snapshot stays what it was
        elsewhere = play(target, [90, 91, 92, 93, 94], actions[3:])[0]
        assert elsewhere.tolist() != [words for words, _ in expected]
        target.restore(saved)
        assert [(t.words.tolist(), t.rewards.tolist()) for t in map(target.step, actions[3:])] == expected


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
@pytest.mark.parametrize("reward", [BleuReward(), letters], ids=["bleu", "letters"])
def test_a_copy_goes_on_by_itself(make, clone, reward):
    actions = random_actions(np.random.default_rng(15), "hard", 5)
    dynamics = make(5, reward=reward, shaped=True)
    dynamics.begin(np.arange(5), ROWS)
    for action in actions[:3]:
        dynamics.step(action)
    twin = clone(dynamics)
    dynamics.begin(np.arange(5), [60, 61, 62, 63, 64])  # the copy must not notice
    continued = [(t.words.tolist(), t.rewards.tolist()) for t in map(twin.step, actions[3:])]
    words, rewards, _ = play(make(5, reward=reward, shaped=True), ROWS, actions)
    assert continued == list(zip(words[3:].tolist(), rewards[3:].tolist(), strict=True))


@pytest.mark.parametrize(("mine", "theirs"), [("hard", "soft"), ("soft", "hard")])
def test_a_snapshot_of_the_other_attention_is_refused(make, mine, theirs):
    dynamics = make(2, mine)
    with pytest.raises(ValueError, match=f"state is not of {mine} attention"):
        dynamics.restore(make(2, theirs).snapshot())


# --- several episodes an image ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("reward", [BleuReward(), letters], ids=["bleu", "letters"])
@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_a_forked_episode_goes_on_as_its_parent_would_have(make, attention, reward, half):
    rng = np.random.default_rng(13)
    rows, when = np.repeat(ROWS[:3], 4), 3
    actions = random_actions(rng, attention, 12)
    parents = rng.integers(4, size=12) + np.repeat([0, 4, 8], 4)
    dynamics = make(12, attention, reward=reward, shaped=True, per_image=4)
    dynamics.begin(np.arange(12), rows)
    appended, paid = [], []
    for step, action in enumerate(actions):
        if step == when and half:
            logits = dynamics.attend(action)
            dynamics.fork(torch.from_numpy(parents))
            transition = dynamics.append_words(logits.argmax(-1)[parents])
        else:
            if step == when:
                dynamics.fork(torch.from_numpy(parents))
            transition = dynamics.step(action)
        appended.append(transition.words)
        paid.append(transition.rewards)
    inherited = actions.copy()
    inherited[: when + half] = actions[: when + half][:, parents]
    straight = make(12, attention, reward=reward, shaped=True)
    words, rewards, _ = play(straight, rows, inherited)
    assert np.array_equal(np.stack(appended)[when:], words[when:])
    np.testing.assert_allclose(np.stack(paid)[when:], rewards[when:], atol=1e-9)
    for name, ours, theirs in zip(dynamics.episodes._fields, dynamics.episodes, straight.episodes, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)
    assert len({tuple(column) for column in words.T.tolist()}) > 6
    assert not np.array_equal(play(make(12, attention), rows, actions)[0], words)


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_episodes_of_one_image_are_episodes_like_any_other(make, attention):
    actions = random_actions(np.random.default_rng(14), attention, 6)
    rows = np.repeat(ROWS[:2], 3)
    together = make(6, attention, per_image=3)
    assert np.array_equal(play(together, rows, actions)[0], play(make(6, attention), rows, actions)[0])
    later = play(make(6, attention, per_image=3), rows, actions[:4])[0]
    dynamics = make(6, attention, per_image=3)
    dynamics.begin([3, 4, 5], rows[3:])
    dynamics.step(actions[5])
    dynamics.begin([0, 1, 2], rows[:3])
    dynamics.begin([3, 4, 5], rows[3:])
    assert np.array_equal([dynamics.step(action).words for action in actions[:4]], later)


@pytest.mark.parametrize(("count", "per_image"), [(7, 3), (2, 4), (4, 0), (4, -2)])
def test_as_many_episodes_must_be_there_for_every_image(make, count, per_image):
    with pytest.raises(ValueError, match=f"{count} episodes cannot be {per_image} for every image"):
        make(count, per_image=per_image)


def test_attend_returns_the_logits_and_appends_no_word(make, captioner):
    dynamics = make(3)
    dynamics.begin(np.arange(3), ROWS[:3])
    logits = dynamics.attend([1, 2, 3])
    silent = logits.isneginf().nonzero()[:, 1].tolist()
    vocabulary = captioner.vocabulary
    assert silent == sorted([vocabulary.pad, vocabulary.start, vocabulary.unk]) * 3
    assert dynamics.episodes.lengths.tolist() == [0, 0, 0]
    assert dynamics.append_words(torch.tensor([9, vocabulary.end, 9])).ended.tolist() == [False, True, False]
    assert dynamics.caption(0) == [vocabulary.words[9]]


def test_wrong_settings_are_named(make):
    with pytest.raises(ValueError, match="unknown attention 'both'"):
        make(1, "both")
    with pytest.raises(ValueError, match="max_caption_length must be an integer of at least 1, got 0"):
        make(1, max_caption_length=0)
    with pytest.raises(ValueError, match="max_caption_length must be at most 1000 words, got 1001"):
        make(1, max_caption_length=1001)
    words = len(make(1).vocabulary)
    make(1, sampling=WordSampling("top-k", top_k=words))
    with pytest.raises(ValueError, match=f"top_k {words + 1} is beyond the vocabulary of {words} words"):
        make(1, sampling=WordSampling("top-k", top_k=words + 1))


def test_a_caption_of_one_word_is_a_caption(make):
    dynamics = make(2, max_caption_length=1)
    words, _, ended = play(dynamics, [3, 4], np.zeros((1, 2), np.int64))
    assert ended.all()
    assert dynamics.episodes.lengths.tolist() == [1, 1]
    assert words.shape == (1, 2)


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_the_state_of_an_ended_caption_stays_as_it_was(make, attention):
    dynamics = make(2, attention, max_caption_length=2)
    actions = random_actions(np.random.default_rng(1), attention, 2)
    play(dynamics, [3, 4], actions[:2])
    before = [array.clone() for array in dynamics.episodes.state]
    dynamics.begin([1], [9])
    dynamics.step(actions[2])
    for earlier, current in zip(before, dynamics.episodes.state, strict=True):
        assert torch.equal(earlier[0], current[0])
        assert not torch.equal(earlier[1], current[1])


@pytest.mark.parametrize("observe", ["features", "index", "glimpsed"])
@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_an_observation_is_what_is_known(make, attention, observe):
    dynamics = make(3, attention, max_caption_length=8)
    actions = random_actions(np.random.default_rng(2), attention, 3)
    dynamics.begin([0, 1, 2], [5, 6, 7])
    blank = dynamics.observation(observe)
    assert not blank["glimpses"].any()
    for action in actions[:2]:
        dynamics.step(action)
    dynamics.begin([1], [8])
    dynamics.step(actions[2])
    episodes, counts, rows = dynamics.episodes, np.array([3, 1, 3]), [5, 8, 7]
    observation = dynamics.observation(observe)
    shares = np.stack([dynamics.weights(action) for action in actions[:3]])
    shares[:2, 1] = 0  # what was looked at in the caption before
    shares = shares.sum(0) / counts[:, None]
    features = dynamics.features[np.array(rows)].astype(np.float32)
    if observe == "glimpsed":
        features[shares == 0] = 0
    expected = {"image": np.array(rows)[:, None]} if observe == "index" else {"features": features}
    expected |= {"hidden": episodes.hidden.numpy(), "word": episodes.last[:, None]}
    expected |= {"glimpses": shares.astype(np.float32), "time": (counts[:, None] / 8).astype(np.float32)}
    assert list(observation) == list(expected)
    for name, value in expected.items():
        assert observation[name].dtype == value.dtype
        np.testing.assert_allclose(observation[name], value, rtol=1e-6)
        of_two = dynamics.observation(observe, np.array([2, 0]))[name]
        np.testing.assert_array_equal(of_two, observation[name][[2, 0]])
    observation["hidden"][:] = observation["word"][:] = 7
    assert not (dynamics.observation(observe)["hidden"] == 7).any()


def test_set_decoder_is_like_being_made_with_that_decoder(captioner):
    replacement, dataset = build_captioner("mean", seed=1), Shapes("val")
    features, references = open_features(dataset, captioner.encoder), SplitReferences(dataset, captioner.vocabulary)
    replaced, expected = (
        CaptionDynamics(captioner_used, features, references, BleuReward(), num_episodes=2)
        for captioner_used in (build_captioner("mean"), replacement)
    )
    actions = random_actions(np.random.default_rng(3), "hard", 2)
    replaced.set_decoder(expected.decoder)
    for mine, theirs in zip(play(replaced, [1, 2], actions), play(expected, [1, 2], actions), strict=True):
        assert np.array_equal(mine, theirs)


# --- the task ---------------------------------------------------------------------------------------------------------


def test_a_task_serves_many_dynamics(captioner):
    env = GlimpseEnv("shapes", "val", captioner, shaped=True, max_caption_length=6)
    first, second = env.task.dynamics(2), env.task.dynamics(3)
    assert first.features is second.features is env.features
    assert (first.num_episodes, second.num_episodes) == (2, 3)
    assert first.shaped
    assert first.max_caption_length == 6
    first.begin([0, 1], [1, 2])
    first.step([3, 4])
    assert second.episodes.ended.all()


def test_a_captioner_of_another_language_is_refused(captioner):
    from glimpse_env.core.vocabulary import Vocabulary
    from glimpse_env.models.captioner import Captioner

    foreign = Vocabulary([f"mot{i}" for i in range(len(captioner.vocabulary) - 4)])
    foreigner = Captioner(captioner.encoder, captioner.decoder, foreign, "flickr8k")
    with pytest.raises(ValueError, match=r"holds only 0% of the words of shapes"):
        GlimpseEnv("shapes", "val", foreigner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observe": "pixels"}, "unknown observe 'pixels'; expected one of features, index, glimpsed"),
        ({"attention": "medium"}, "unknown attention 'medium'; expected 'hard' or 'soft'"),
        ({"reward": "praise"}, "unknown reward 'praise'"),
        ({"reward": None}, "reward must be a name such as 'bleu', got None"),
        ({"shaped": "no"}, "shaped must be True or False, got 'no'"),
        ({"device": 3.5}, "device 3.5 cannot be used"),
        ({"decoding": "beam"}, "unknown decoding 'beam'"),
        ({"temperature": 0}, "temperature"),
        ({"split": "all"}, "'all'"),
        (
            {"dataset": "imagenet"},
            "unknown dataset 'imagenet'; expected one of shapes, shapes-large, flickr8k, flickr30k, coco",
        ),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_arguments_without_such_a_value_are_named(captioner, options, message, named):
    with pytest.raises(ValueError, match=message):
        GlimpseEnv(**{"dataset": "shapes", "captioner": captioner if named else None, **options})


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(BleuReward(), letters), (BleuReward(order=2), BleuReward()), (WeightedSum([(2.0, BleuReward())]), BleuReward())],
    ids=["function", "order", "sum"],
)
def test_a_snapshot_with_another_reward_is_refused_before_anything_moves(make, mine, theirs):
    first, second = make(2, reward=mine), make(2, reward=theirs)
    for dynamics, rows in ((first, [1, 2]), (second, [3, 4])):
        dynamics.begin([0, 1], rows)
    message = "state is of captions with another reward; take it from an environment made alike"
    with pytest.raises(ValueError, match=f"^{message}$"):
        first.restore(second.snapshot())
    assert first.episodes.rows.tolist() == [1, 2]


# --- what is taken, and what follows from it --------------------------------------------------------------------------


def test_the_longest_caption_is_allowed_and_one_word_more_is_not(make):
    assert make(1, max_caption_length=MAX_CAPTION_LENGTH).max_caption_length == MAX_CAPTION_LENGTH
    with pytest.raises(ValueError, match=f"at most {MAX_CAPTION_LENGTH} words, got {MAX_CAPTION_LENGTH + 1}"):
        make(1, max_caption_length=MAX_CAPTION_LENGTH + 1)


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_products_are_of_the_type_that_was_asked_for(make, attention):
    rng = np.random.default_rng(0)
    dynamics = make(5, attention=attention, dtype=torch.bfloat16)
    assert dynamics.decoder.dtype == torch.bfloat16
    play(dynamics, ROWS, random_actions(rng, attention, 5))
    if attention == "soft":
        assert dynamics._projected.dtype == torch.bfloat16


def test_any_other_reward_is_paid_at_the_end_alone_unless_it_is_shaped(make):
    actions = random_actions(np.random.default_rng(0), "hard", 5)
    _, paid, ended = play(make(5, reward=letters), ROWS, actions)
    _, every, _ = play(make(5, reward=letters, shaped=True), ROWS, actions)
    last = ended & ~np.concatenate([np.zeros((1, 5), bool), ended[:-1]])
    assert last.any()
    assert (paid[~last] == 0).all()
    np.testing.assert_allclose(paid.sum(0), every.sum(0))


@pytest.mark.parametrize("missing", ["references", "reward"])
def test_without_references_or_reward_nothing_is_paid(captioner, missing):
    dataset = Shapes("val")
    scoring = {"references": SplitReferences(dataset, captioner.vocabulary), "reward": BleuReward(), missing: None}
    features = open_features(dataset, captioner.encoder)
    dynamics = CaptionDynamics(captioner, features, **scoring, num_episodes=5)
    _, paid, _ = play(dynamics, ROWS, random_actions(np.random.default_rng(0), "hard", 5))
    assert (paid == 0).all()
    assert (dynamics.episodes.metrics == 0).all()


def test_the_report_of_an_episode_is_bleu_without_the_end(make, captioner):
    dynamics = make(3)
    rng = np.random.default_rng(5)
    dynamics.begin(np.arange(3), ROWS[:3])
    vocabulary, dataset = captioner.vocabulary, Shapes("val")
    captions = [[*reference[:4], "<end>"] for reference in (dataset.references(row)[0] for row in ROWS[:3])]
    for words in zip(*map(vocabulary.encode, captions), strict=True):
        dynamics.attend(rng.integers(L, size=3))
        paid = dynamics.append_words(torch.tensor(words))
    for slot, (row, caption) in enumerate(zip(ROWS, captions, strict=False)):
        references = dataset.references(row)
        expected = [sentence_bleu(references, caption[:-1], order_weights(order), 1) for order in (1, 2, 3, 4)]
        np.testing.assert_allclose(dynamics.episodes.metrics[slot], expected, atol=1e-12)
        ended = [[*reference, "<end>"] for reference in references]
        assert paid.rewards[slot] == pytest.approx(sentence_bleu(ended, caption, order_weights(4), 1), abs=1e-12)


def test_only_what_is_not_the_usual_reward_is_followed_word_by_word(make):
    assert make(2)._rewards._running is None  # counted at a caption's end, in a fraction of the time
    for options in ({"shaped": True}, {"reward": BleuReward(smoothing=2)}, {"reward": letters}):
        assert make(2, **options)._rewards._running is not None


@pytest.mark.parametrize("keep", [True, False])
def test_a_step_keeps_the_states_of_ended_episodes_as_it_is_told(make, captioner, keep):
    dynamics = make(2)
    dynamics.begin([0, 1], [3, 17])
    dynamics.attend([0, 0])
    dynamics.append_words(torch.tensor([captioner.vocabulary.end, captioner.vocabulary.unk]))
    before = dynamics.episodes.hidden.clone()
    dynamics.step([24, 24], keep_ended=keep)
    assert torch.equal(dynamics.episodes.hidden[0], before[0]) == keep
    assert not torch.equal(dynamics.episodes.hidden[1], before[1])


def test_draws_are_not_rounded(make, monkeypatch):
    dynamics, heard = make(2, sampling=WordSampling("sample")), []
    choose = WordSampling.choose

    def listening(self, logits, draws):
        heard.append(draws)
        return choose(self, logits, draws)

    monkeypatch.setattr(WordSampling, "choose", listening)
    dynamics.begin([0, 1], [3, 17])
    dynamics.step([0, 0], [1 / 3, 1 - 2.0**-40])  # a list: the last would be 1 in single precision
    assert heard[0].tolist() == [1 / 3, 1 - 2.0**-40]
