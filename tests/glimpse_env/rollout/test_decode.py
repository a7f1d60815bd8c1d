"""How captions leave the model: against every caption there is, a slow beam, and the decoder replayed by hand."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch

import glimpse_env  # noqa: F401 (registers the ids)
from agents.attention import AdditiveAttention, AttentionConfig
from agents.attention_agents import HardAttentionAgent, SoftAttentionAgent
from agents.loading import load_agent
from agents.scripted import OracleAgent, RasterScanAgent
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets.shapes import SHAPES, Shapes
from glimpse_env.features.build import open_features
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig, DecoderState
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig
from glimpse_env.rollout.beam_search import BeamSearch, Captioned, extend_hypotheses, repeated_words
from glimpse_env.rollout.decode import decode, make_decoding
from glimpse_env.rollout.word_sampling import WordSampling

L, D, H = 5, 8, 6
PAD, START, END, UNK = Vocabulary.pad, Vocabulary.start, Vocabulary.end, Vocabulary.unk
KINDS = ["soft", "hard"]
ENCODER = EncoderConfig(feature_dim=D)


class World(NamedTuple):
    """A captioner of a few words with random weights, attention, and images that are random annotations."""

    captioner: Captioner
    attention: AdditiveAttention
    features: FeatureTable

    def agent(self, kind):
        agent_type = SoftAttentionAgent if kind == "soft" else HardAttentionAgent
        return agent_type(self.attention, self.features)

    def decode(self, kind, *arguments, **options):
        return decode(self.captioner, self.features, self.agent(kind), *arguments, **options)

    def ids(self, caption):
        return [*self.captioner.vocabulary.encode(caption.words), *([END] if caption.ended else [])]


def make_world(seed=0, words=8, common=None, images=4):
    """Of ``words`` words; all but the first ``common`` are so rare that no good caption has them."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        vocabulary = Vocabulary([f"w{number}" for number in range(words)])
        sizes = {"embed_dim": 5, "hidden_dim": H, "context_dim": 7}
        decoder = CaptionDecoder(DecoderConfig(len(vocabulary), D, **sizes))
        attention = AdditiveAttention(AttentionConfig(D, H, 6))
        with torch.no_grad():
            for parameter in (*decoder.parameters(), *attention.parameters()):
                parameter.mul_(4)
            if common is not None:
                decoder.output_word.bias[4 + common :] -= 40
        captioner = Captioner(CNNEncoder(ENCODER), decoder, vocabulary, "shapes").eval().requires_grad_(False)
        features = FeatureTable(torch.randn(images, L, D).half().numpy())
    return World(captioner, attention.eval().requires_grad_(False), features)


@pytest.fixture(scope="module")
def world():
    return make_world()


class Level(NamedTuple):
    """All captions of t words, ``<end>`` included: words (N, t), log-probability (N,), looked (N, t, L)."""

    words: np.ndarray
    scores: np.ndarray
    glimpses: np.ndarray


def tree(world, kind, row, longest, reshape=lambda probabilities: probabilities):
    """Every beginning of a caption of 1 to ``longest`` words, the agent and the decoder played by hand.

    ``reshape`` makes the probabilities (N, V) at a step those that words are drawn with.
    """
    decoder = world.captioner.decoder
    annotations = torch.from_numpy(world.features[row]).float()
    state = decoder.init_state(annotations[None])
    levels = [Level(np.zeros((1, 0), int), np.zeros(1), np.zeros((1, 0, L)))]
    for _ in range(longest):
        going = ~(levels[-1].words == END).any(1)
        words, scores, glimpses = (array[going] for array in levels[-1])
        last = torch.from_numpy(words[:, -1]) if words.shape[1] else torch.tensor([START])
        state = DecoderState(*(array[torch.from_numpy(going)] for array in state))
        alpha = world.attention(annotations.expand(len(last), -1, -1), state.hidden).softmax(-1)
        if kind == "hard":
            alpha = torch.nn.functional.one_hot(alpha.argmax(-1), L).float()
        logits, state = decoder.step(alpha @ annotations, last, state)
        logits[:, [PAD, START, UNK]] = -torch.inf
        probabilities = reshape(logits.double().softmax(-1).numpy())
        parents, appended = probabilities.nonzero()
        levels.append(
            Level(
                np.column_stack([words[parents], appended]),
                scores[parents] + np.log(probabilities[parents, appended]),
                np.concatenate([glimpses[parents], alpha.numpy()[parents, None]], axis=1),
            )
        )
        state = DecoderState(*(array[torch.from_numpy(parents)] for array in state))
    return levels[1:]


def says_twice(words, order):
    """Whether a list of words has an n-gram twice; never for order 0."""
    grams = Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))
    return order > 0 and max(grams.values(), default=0) > 1


def complete(levels):
    """Words, log-probability and looked of every caption that is done."""
    for level in levels:
        done = (level.words[:, -1] == END) | (level is levels[-1])
        yield from zip(level.words[done].tolist(), level.scores[done], level.glimpses[done], strict=True)


def best_of_all(captions, power, block):
    ranked = sorted(captions, key=lambda caption: -caption[1] / len(caption[0]) ** power)
    return next(caption for caption in ranked if not says_twice(caption[0], block))


def slow_beam(levels, width, power, block):
    """The rule in BeamSearch's docstring, read word by word: the best finished caption and its log-probability."""
    scores = {tuple(words): score for level in levels for words, score in zip(level.words.tolist(), level.scores)}  # noqa: B905
    words = range(max(map(max, scores)) + 1)
    hypotheses, finished = [(), *[None] * (width - 1)], {}
    for _ in levels:
        grown = []
        for index in range(width):
            growing = [prefix for prefix in hypotheses[: index + 1] if prefix is not None]
            longer = [(*prefix, word) for prefix in growing for word in words if (*prefix, word) in scores]
            longer = [prefix for prefix in longer if prefix not in grown and not says_twice(prefix, block)]
            grown.append(max(longer, key=scores.__getitem__, default=None))
        over = [prefix is not None and (prefix[-1] == END or len(prefix) == len(levels)) for prefix in grown]
        finished |= {prefix: scores[prefix] for prefix, ended in zip(grown, over, strict=True) if ended}
        hypotheses = [None if ended else prefix for prefix, ended in zip(grown, over, strict=True)]
    return max(finished.items(), key=lambda item: item[1] / len(item[0]) ** power)


def replay(world, caption):
    """Logits (t, V) of a caption's words, the decoder reading what the caption says was looked at."""
    decoder = world.captioner.decoder
    annotations = torch.from_numpy(world.features[caption.row]).float()
    state, word, logits = decoder.init_state(annotations[None]), START, []
    for glimpse, next_word in zip(caption.glimpses, world.ids(caption), strict=True):
        step_logits, state = decoder.step(torch.from_numpy(glimpse)[None] @ annotations, torch.tensor([word]), state)
        step_logits[:, [PAD, START, UNK]] = -torch.inf
        logits.append(step_logits[0])
        word = next_word
    return torch.stack(logits)


def rank(caption, power):
    return caption.log_probability / (len(caption.words) + caption.ended) ** power


def alike(captions, expected):
    """Whether two lists hold the same captions, apart from rounding."""
    for caption, reference in zip(captions, expected, strict=True):
        assert (caption.row, caption.words, caption.ended) == (reference.row, reference.words, reference.ended)
        assert caption.log_probability == pytest.approx(reference.log_probability, abs=1e-4)
        np.testing.assert_allclose(caption.glimpses, reference.glimpses, atol=1e-4)
    return True


# --- beam search ------------------------------------------------------------------------------------------------------

RULES = [(0.0, 0), (0.7, 0), (1.0, 0), (0.0, 1), (1.0, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_that_keeps_all_is_exhaustive_search(kind):
    """Of 14 words two are common, so 18 hypotheses hold all that could become the best caption."""
    best, longest = set(), 4
    for seed in range(4):
        world = make_world(seed, words=14, common=2)
        levels = tree(world, kind, 0, longest)
        assert len(levels[-1].words) == 14**3 * 15
        captions = list(complete(levels))
        for power, block in RULES:
            words, score, glimpses = best_of_all(captions, power, block)
            search = BeamSearch(18, power, block)
            (caption,) = world.decode(kind, [0], search, max_caption_length=longest)
            assert world.ids(caption) == words
            assert caption.ended == (words[-1] == END)
            assert caption.log_probability == pytest.approx(score, abs=1e-4)
            np.testing.assert_allclose(caption.glimpses, glimpses, atol=1e-4)
            best.add((seed, *words))
    assert len(best) > 6  # the rules make a difference


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("power", "block"), RULES)
def test_a_narrow_beam_is_the_rule_read_word_by_word(world, kind, power, block):
    best, longest = {}, 4
    for row in range(4):
        levels = tree(world, kind, row, longest)
        for width in (1, 2, 3, 5, 8):
            words, score = slow_beam(levels, width, power, block)
            search = BeamSearch(width, power, block)
            (caption,) = world.decode(kind, [row], search, max_caption_length=longest)
            assert world.ids(caption) == list(words)
            assert caption.log_probability == pytest.approx(score, abs=1e-4)
            best[row, width] = words
    assert any(best[row, 1] != best[row, 8] for row in range(4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_of_one_and_the_likeliest_word_alone_are_greedy(world, kind):
    greedy = world.decode(kind)
    assert alike(world.decode(kind, decoding=BeamSearch(1)), greedy)
    assert alike(world.decode(kind, decoding=WordSampling("top-k", top_k=1)), greedy)
    assert len({tuple(caption.words) for caption in greedy}) > 1


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wider_beam_never_finds_a_worse_caption(kind, power):
    better = 0
    for seed in range(12):
        world = make_world(seed, images=8)
        ranks = []
        for width in range(1, 7):
            captions = world.decode(kind, decoding=BeamSearch(width, power), max_caption_length=7)
            ranks.append([rank(caption, power) for caption in captions])
        gains = np.diff(ranks, axis=0)  # (5, 8)
        assert gains.min() > -1e-5
        better += (gains > 1e-3).any(0).sum()
    assert better > 15


def test_extend_takes_in_turn_the_best_that_grows_from_its_own_place_or_before():
    rng = np.random.default_rng(0)
    for width in (1, 2, 4):
        scores = rng.normal(size=(30, width))
        scores[rng.random((30, width)) < 0.3] = -np.inf
        logs = -np.sort(rng.exponential(size=(30, width, width)))
        parents, picks, values = extend_hypotheses(torch.from_numpy(scores), torch.from_numpy(logs))
        for image in range(30):
            taken = set()
            for hypothesis in range(width):
                grown = {
                    (parent, word): scores[image, parent] + logs[image, parent, word]
                    for parent in range(hypothesis + 1)
                    for word in range(width)
                    if (parent, word) not in taken and scores[image, parent] > -np.inf
                }
                if not grown:
                    assert values[image, hypothesis] == -np.inf
                    continue
                best = max(grown, key=grown.__getitem__)
                taken.add(best)
                assert (int(parents[image, hypothesis]), int(picks[image, hypothesis])) == best
                assert float(values[image, hypothesis]) == grown[best]
        for narrow in range(1, width):  # the first hypotheses do not know how many come after them
            narrow_logs = torch.from_numpy(logs[:, :narrow, :narrow])
            narrow_values = extend_hypotheses(torch.from_numpy(scores[:, :narrow]), narrow_logs)[2]
            assert torch.equal(narrow_values, values[:, :narrow])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_repeats_are_the_words_that_would_say_an_ngram_twice(order):
    rng = np.random.default_rng(order)
    words, lengths = rng.integers(4, 7, (200, 8)), rng.integers(0, 9, 200)
    words[np.arange(8) >= lengths[:, None]] = PAD
    repeated = repeated_words(torch.from_numpy(words), torch.from_numpy(lengths), order, 7)
    assert repeated.shape == (200, 7)
    assert not repeated[:, :4].any()
    for ids, length, banned in zip(words.tolist(), lengths.tolist(), repeated.tolist(), strict=True):
        caption = ids[:length]
        before = {tuple(caption[start : start + order]) for start in range(length - order + 1)}
        assert banned == [tuple([*caption, word][length - order + 1 :]) in before for word in range(7)] or (
            length < order and not any(banned)
        )
    assert repeated.any()


def test_repeats_of_ngrams_longer_than_any_caption():
    assert not repeated_words(torch.full((2, 3), 4), torch.tensor([3, 2]), 4, 6).any()


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 4])
def test_a_blocked_ngram_is_never_said_twice(order, width):
    free = blocked = 0
    for seed in range(4):
        world = make_world(seed)
        free += sum(says_twice(caption.words, order) for caption in world.decode("soft", decoding=BeamSearch(width)))
        captions = world.decode("soft", decoding=BeamSearch(width, block_ngram=order))
        blocked += sum(says_twice(caption.words, order) for caption in captions)
    assert free > 0
    assert blocked == 0


def test_a_model_that_may_say_nothing_again_ends(world):
    for caption in world.decode("hard", decoding=BeamSearch(12, block_ngram=1), max_caption_length=30):
        assert caption.ended
        assert len(set(caption.words)) == len(caption.words) <= 8


# --- drawn words ------------------------------------------------------------------------------------------------------


def tempered(temperature):
    def reshape(probabilities):
        powered = probabilities ** (1 / temperature)
        return powered / powered.sum(1, keepdims=True)

    return reshape


def likeliest(count):
    def reshape(probabilities):
        top = np.zeros_like(probabilities)
        for row, mass in zip(top, probabilities, strict=True):
            for word in sorted(range(len(mass)), key=lambda word: -mass[word])[:count]:
                row[word] = mass[word]
        return top / top.sum(1, keepdims=True)

    return reshape


def nucleus(mass):
    def reshape(probabilities):
        top = np.zeros_like(probabilities)
        for row, likelihood in zip(top, probabilities, strict=True):
            for word in sorted(range(len(likelihood)), key=lambda word: -likelihood[word]):
                row[word] = likelihood[word]
                if row.sum() >= mass:
                    break
        return top / top.sum(1, keepdims=True)

    return reshape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sampling", "reshape"),
    [
        (WordSampling("sample"), lambda probabilities: probabilities),
        (WordSampling("sample", temperature=2.5), tempered(2.5)),
        (WordSampling("top-k", top_k=3), likeliest(3)),
        (WordSampling("top-p", top_p=0.7), nucleus(0.7)),
    ],
    ids=["sample", "temperature", "top-k", "top-p"],
)
def test_captions_are_drawn_from_their_distribution(kind, sampling, reshape):
    world, count = make_world(2, words=6), 4000
    expected = {tuple(w): count * np.exp(score) for w, score, _ in complete(tree(world, kind, 1, 2, reshape))}
    plain = {tuple(w): score for w, score, _ in complete(tree(world, kind, 1, 2))}
    assert sum(expected.values()) == pytest.approx(count)
    rng = np.random.default_rng(3)
    captions = world.decode(kind, [1] * count, sampling, rng=rng, max_caption_length=2, batch=1500)
    counts = Counter(tuple(world.ids(drawn)) for drawn in captions)
    assert set(counts) <= set(expected)
    for drawn in captions[:50]:  # the score is the decoder's own, whatever the words were drawn from
        assert drawn.log_probability == pytest.approx(plain[tuple(world.ids(drawn))], abs=1e-4)
    cells = [caption for caption in expected if expected[caption] >= 5]
    table = [(counts[caption], expected[caption]) for caption in cells]
    rest = count - sum(observed for observed, _ in table), count - sum(expectation for _, expectation in table)
    table += [rest] if rest[1] >= 5 else []
    chi2, degrees = sum((observed - expectation) ** 2 / expectation for observed, expectation in table), len(table) - 1
    assert degrees >= 4
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees)


def test_drawn_words_follow_from_the_generator(world):
    def draw(seed):
        rng = np.random.default_rng(seed)
        return [caption.words for caption in world.decode("soft", decoding=WordSampling("sample"), rng=rng)]

    assert draw(0) == draw(0) != draw(1)
    unseeded = world.decode("soft", decoding=WordSampling("sample"))
    assert [caption.words for caption in unseeded] == draw(0)


# --- one caption ------------------------------------------------------------------------------------------------------

METHODS = {
    "greedy": WordSampling(),
    "sample": WordSampling("sample", temperature=0.8),
    "top-k": WordSampling("top-k", top_k=4),
    "top-p": WordSampling("top-p", top_p=0.8),
    "beam": BeamSearch(4),
    "beam, normalised": BeamSearch(5, 0.9),
    "beam, blocked": BeamSearch(3, block_ngram=2),
}


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_caption_is_what_the_decoder_says_of_what_was_looked_at(world, kind, method, deterministic):
    for caption in world.decode(kind, decoding=METHODS[method], deterministic=deterministic, max_caption_length=9):
        ids, logits = world.ids(caption), replay(world, caption)
        assert caption.glimpses.dtype == np.float32
        assert caption.glimpses.shape == (len(ids), L)
        assert END not in ids[:-1]
        assert (len(ids) == 9) or caption.ended
        np.testing.assert_allclose(caption.glimpses.sum(1), 1, atol=1e-5)
        assert (set(np.unique(caption.glimpses)) <= {0, 1}) == (kind == "hard")
        log_probabilities = logits.double().log_softmax(-1)[range(len(ids)), ids]
        assert caption.log_probability == pytest.approx(float(log_probabilities.sum()), abs=1e-4)
        if method == "greedy":
            assert logits.argmax(1).tolist() == ids
    assert isinstance(caption, Captioned)


@pytest.mark.parametrize("decoding", [WordSampling(), BeamSearch(3)], ids=["greedy", "beam"])
def test_hard_attention_can_draw_its_glimpses(world, decoding):
    def locations(seed, deterministic=False):
        agent = HardAttentionAgent(world.attention, world.features, seed=seed)
        captions = decode(world.captioner, world.features, agent, decoding=decoding, deterministic=deterministic)
        return [caption.glimpses.argmax(1).tolist() for caption in captions]

    assert locations(0) == locations(0) != locations(1)
    assert locations(0, True) == locations(1, True)


@pytest.mark.parametrize("longest", [1, 2, 6])
@pytest.mark.parametrize("method", ["greedy", "beam", "beam, normalised"])
def test_no_caption_is_longer_than_allowed(world, method, longest):
    captions = world.decode("soft", decoding=METHODS[method], max_caption_length=longest)
    assert all(len(caption.glimpses) == len(caption.words) + caption.ended <= longest for caption in captions)
    assert any(not caption.ended for caption in captions)


# --- many captions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["greedy", "beam", "beam, normalised", "beam, blocked"])
def test_captions_do_not_depend_on_the_company_they_are_made_in(kind, method):
    world, rng = make_world(11, images=12), np.random.default_rng(0)
    every = world.decode(kind, decoding=METHODS[method])
    assert [caption.row for caption in every] == list(range(12))
    assert len({len(caption.glimpses) for caption in every}) > 2  # so places become free at different times
    for batch in (1, 3, 7, 100):
        order = rng.permutation(12)
        assert alike(world.decode(kind, order, METHODS[method], batch=batch), [every[row] for row in order])
    again = [4, 4, 0, 4, 11, 0]
    assert alike(world.decode(kind, again, METHODS[method], batch=2), [every[row] for row in again])


def test_no_images_have_no_captions(world):
    assert world.decode("soft", []) == world.decode("hard", range(0), BeamSearch(2)) == []


class Pair(NamedTuple):
    first: np.ndarray
    second: torch.Tensor


class Remembering:
    """Looks where the sum of all words so far points; its memory is packed as ``pack`` says."""

    attention = "hard"

    def __init__(self, pack, unpack):
        self.pack, self.unpack = pack, unpack

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        words = observation["word"][:, 0]
        before = np.zeros(len(words), np.int64) if state is None else np.asarray(self.unpack(state))
        total = np.where(episode_start, 0, before) + words
        return total % L, self.pack(total)


@pytest.mark.parametrize("method", ["greedy", "beam", "beam, normalised"])
@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda total: total, lambda state: state),
        (torch.from_numpy, lambda state: state),
        (lambda total: (None, [total[:, None]]), lambda state: state[1][0][:, 0]),
        (
            lambda total: Pair(total // 2, torch.from_numpy(total - total // 2)),
            lambda state: state[0] + state[1].numpy(),
        ),
    ],
    ids=["array", "tensor", "nested", "named tuple"],
)
def test_a_policys_memory_follows_the_hypothesis(method, pack, unpack):
    world = make_world(6, images=12)
    captions = decode(world.captioner, world.features, Remembering(pack, unpack), decoding=METHODS[method], batch=5)
    for caption in captions:
        previous = [START, *world.ids(caption)[:-1]]
        assert caption.glimpses.argmax(1).tolist() == [total % L for total in np.cumsum(previous)]


def test_the_oracle_keeps_count_along_the_beam(captioner):
    dataset = Shapes("val")
    agent = OracleAgent(dataset, captioner.vocabulary)
    features = open_features(dataset, captioner.encoder)
    moved = 0
    for caption in decode(captioner, features, agent, range(20), BeamSearch(4), batch=6):
        objects = dataset.objects(caption.row)
        named = np.cumsum([0, *(word in SHAPES for word in caption.words)])[: len(caption.glimpses)]
        assert caption.glimpses.argmax(1).tolist() == [objects[min(count, len(objects) - 1)].tile for count in named]
        moved += len(set(caption.glimpses.argmax(1))) > 1
    assert moved > 5


@pytest.mark.parametrize("observe", ["features", "index"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_captions_are_those_of_the_environment(captioner, attention_file, kind, observe):
    env = gym.make("Glimpse/Shapes-v0", split="val", captioner=captioner, attention=kind, observe=observe)
    agent = load_agent(f"{kind}:{attention_file}", env)
    rows = [3, 14, 15, 92, 65, 35]
    captions = decode(captioner, env.unwrapped.features, agent, rows, batch=4)
    for caption in captions:
        observation, _ = env.reset(options={"image": caption.row})
        actions, ended = [], False
        while not ended:
            action, _ = agent.predict(observation, deterministic=True)
            actions.append(np.eye(49)[action] if kind == "hard" else action)
            observation, _, ended, _, info = env.step(action)
        assert " ".join(caption.words) == info["caption"]
        assert caption.ended == (observation["word"][0] == END)
        np.testing.assert_allclose(caption.glimpses, actions, atol=1e-4)
    assert len({tuple(caption.words) for caption in captions}) > 1
    env.close()


# --- options ----------------------------------------------------------------------------------------------------------


def test_make_decoding_reads_the_options_of_its_method():
    assert make_decoding() == WordSampling()
    assert make_decoding("top-k", top_k=3, temperature=2, beam_width=0) == WordSampling("top-k", 2, 3)
    assert make_decoding("top-p", top_p=0.5) == WordSampling("top-p", top_p=0.5)
    options = {"beam_width": 4, "length_normalisation": 0.5, "block_ngram": 3, "top_k": 0}
    assert make_decoding("beam", **options) == BeamSearch(4, 0.5, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "unknown decoding 'best'; expected one of greedy, sample, top-k, top-p, beam"),
        ({"method": "top-k", "top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        ({"method": "top-k", "top_k": -4}, "top_k .*-4"),
        ({"method": "top-k", "top_k": 2.5}, "top_k .*2.5"),
        ({"method": "top-k", "top_k": True}, "top_k .*True"),
        ({"method": "sample", "temperature": 0.0}, "temperature .*0.0"),
        ({"method": "top-p", "temperature": -0.5}, "temperature .*-0.5"),
        ({"method": "top-p", "top_p": 1.5}, "top_p .*1.5"),
        ({"method": "beam", "beam_width": 0}, "beam width must be an integer of at least 1, got 0"),
        ({"method": "beam", "beam_width": -1}, "beam width .*-1"),
        ({"method": "beam", "beam_width": 2.5}, "beam width .*2.5"),
        ({"method": "beam", "beam_width": "3"}, "beam width .*'3'"),
        ({"method": "beam", "length_normalisation": -0.1}, "length_normalisation .*-0.1"),
        ({"method": "beam", "length_normalisation": float("nan")}, "length_normalisation .*nan"),
        ({"method": "beam", "length_normalisation": float("inf")}, "length_normalisation .*inf"),
        ({"method": "beam", "block_ngram": -2}, "block_ngram must be an integer of at least 0, got -2"),
        ({"method": "beam", "block_ngram": 1.5}, "block_ngram .*1.5"),
    ],
)
def test_values_outside_their_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_decoding(**options)


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (BeamSearch(13), "beam width 13 is beyond the vocabulary of 12 words"),
        (WordSampling("top-k", top_k=13), "top_k 13 is beyond the vocabulary of 12 words"),
    ],
)
def test_more_words_than_the_vocabulary_has_are_refused(world, decoding, message):
    with pytest.raises(ValueError, match=message):
        world.decode("soft", decoding=decoding)


def test_as_many_words_as_the_vocabulary_has_are_allowed(world):
    assert len(world.decode("soft", decoding=BeamSearch(12))) == 4
    assert len(world.decode("soft", decoding=WordSampling("top-k", top_k=12))) == 4
    assert len(world.decode("soft", decoding=WordSampling("top-p", top_k=13))) == 4  # not read


@pytest.mark.parametrize("top_k", [0, 2.5, 1000])
def test_an_environment_names_a_top_k_it_cannot_keep(captioner, top_k):
    with pytest.raises(ValueError, match=f"top_k .*{top_k}"):
        gym.make("Glimpse/Shapes-v0", captioner=captioner, decoding="top-k", top_k=top_k)


@pytest.mark.parametrize("row", [4, -1, 100])
def test_rows_that_do_not_exist_are_named(world, row):
    with pytest.raises(ValueError, match=rf"row {row} does not exist; expected an integer in \[0, 4\)"):
        world.decode("soft", [0, row, 1])


def test_no_room_for_a_word_is_refused(world):
    with pytest.raises(ValueError, match="max_caption_length must be an integer of at least 1, got 0"):
        decode(world.captioner, world.features, RasterScanAgent(L), max_caption_length=0)


def test_a_way_of_decoding_may_be_named(world):
    for name, decoding in (("greedy", WordSampling()), ("beam", BeamSearch()), ("top-k", WordSampling("top-k"))):
        assert alike(world.decode("soft", None, name), world.decode("soft", None, decoding))
    with pytest.raises(ValueError, match="unknown decoding 'nonsense'; expected one of greedy, sample"):
        world.decode("soft", None, "nonsense")
    for wrong in (None, 3, BeamSearch):
        with pytest.raises(ValueError, match="decoding must be a WordSampling, a BeamSearch or a name"):
            world.decode("soft", None, wrong)


@pytest.mark.parametrize("decoding", [WordSampling(), BeamSearch(2)], ids=str)
def test_logits_that_are_no_numbers_are_refused(decoding):
    broken = make_world()
    broken.captioner.decoder.output_word.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="the decoder's logits are not numbers"):
        broken.decode("soft", None, decoding)


@pytest.mark.parametrize("rows", [[0.0, 1.0], [True, False]])
def test_rows_are_integers(world, rows):
    with pytest.raises(ValueError, match="rows must be integers, got"):
        world.decode("soft", rows)


class Recurrent(RasterScanAgent):
    """Keeps its state as recurrent policies of Stable-Baselines3 do: (layers, B, size)."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        count = len(observation["word"])
        if state is not None:
            assert state.shape == (1, count, 2)
        return super().predict(observation)[0], np.zeros((1, count, 2))


class Forking(Recurrent):
    """Says itself how its state is forked."""

    def fork(self, state, parents):
        assert parents.dtype == np.int64
        return state[:, parents]


def test_a_state_that_cannot_be_forked_is_refused_and_a_policy_may_fork_its_own(world):
    arguments = world.captioner, world.features
    with pytest.raises(ValueError, match=r"ndarray of shape \(1, 8, 2\).*method fork\(state, parents\)"):
        decode(*arguments, Recurrent(L), None, BeamSearch(2))
    captions = decode(*arguments, Forking(L), None, BeamSearch(2))
    assert alike(captions, decode(*arguments, RasterScanAgent(L), None, BeamSearch(2)))
    assert len(decode(*arguments, Recurrent(L))) == len(world.features)  # words one by one fork nothing


def test_bfloat16_leaves_nothing_behind(world):
    agent = world.agent("soft")
    decode(world.captioner, world.features, agent, dtype=torch.bfloat16)
    again = decode(world.captioner, world.features, agent)
    for caption, expected in zip(again, world.decode("soft"), strict=True):
        assert np.array_equal(caption.glimpses, expected.glimpses)
        assert caption.log_probability == expected.log_probability
