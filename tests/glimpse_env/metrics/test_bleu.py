"""BLEU equals nltk's, of finished captions and word by word, and Papineni's formula without smoothing."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate import bleu_score

from glimpse_env.datasets import make_dataset
from glimpse_env.datasets.shapes import Shapes
from glimpse_env.metrics.bleu import (
    BLEU4,
    BleuStatistics,
    bleu,
    corpus_bleu,
    corpus_statistics,
    order_weights,
    sentence_bleu,
    sentence_statistics,
)
from glimpse_env.metrics.incremental_bleu import IncrementalBleu
from glimpse_env.metrics.references import ReferenceTable
from tests.conftest import examples

pytestmark = pytest.mark.filterwarnings(r"ignore:\nThe hypothesis contains 0 counts")  # nltk's, of orders unmatched

MOST = 24  # words of a caption
VOCABULARY = "abcd"  # of captions that grow: every letter is a word


def spelled(text):
    """A caption: a letter is a word, and ``=`` repeats all words before it."""
    words: list[str] = []
    for letter in text:
        words += words if letter == "=" else [letter]
    return words[:MOST]


LETTERS = ("aaabbb=|", "aabbcde|", "aaabb=?!|")  # as frequent as they stand there; no vocabulary has ? and !


def captions_of(drawn):
    """Captions spelled by bytes, separated by ``|``; the first byte selects the letters."""
    letters = LETTERS[drawn[0] % len(LETTERS)]
    return [spelled(text) for text in "".join(letters[byte % len(letters)] for byte in drawn[1:]).split("|")]


def scored(drawn):
    """References and the caption before them; a single caption is its own reference."""
    caption, *refs = captions_of(drawn)
    return (refs if any(refs) else [caption or ["a"]]), caption


# Few words, so that n-grams meet and repeat. Bytes are one draw, whatever their number: a tenth of the price of lists.
spellings = st.binary(min_size=10, max_size=50)
several = spellings.map(lambda drawn: scored(drawn)[0])
pairs = spellings.map(scored)
corpora = st.lists(spellings, min_size=1, max_size=4).map(
    lambda drawn: tuple(map(list, zip(*map(scored, drawn), strict=True)))
)
grid = [weight for orders in (1, 2, 3, 4) for weight in itertools.product((0.0, 1 / 3, 0.7, 1.9), repeat=orders)]
weights = st.sampled_from([order_weights(order) for order in (1, 2, 3, 4)] * 20 + grid)
smoothing = st.integers(0, 4)


def nltk_says(function, *arguments, method):
    return function(*arguments, smoothing_function=getattr(bleu_score.SmoothingFunction(), f"method{method}"))


def papineni(list_of_references, hypotheses, order):
    """Corpus BLEU from its definition (Papineni et al. 2002, §2.3), without smoothing."""
    log_precisions = []
    for n in range(1, order + 1):
        matches = total = 0
        for refs, hypothesis in zip(list_of_references, hypotheses, strict=True):
            grams = [tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1)]
            total += max(1, len(grams))  # nltk's reading of a caption too short for n-grams
            for gram, count in Counter(grams).items():
                most = max(sum(tuple(ref[i : i + n]) == gram for i in range(len(ref) - n + 1)) for ref in refs)
                matches += min(count, most)
        if matches == 0:
            return 0.0
        log_precisions.append(math.log(matches / total))
    length = sum(map(len, hypotheses))
    closest = sum(
        min((abs(len(ref) - len(hypothesis)), len(ref)) for ref in refs)[1]
        for refs, hypothesis in zip(list_of_references, hypotheses, strict=True)
    )
    return math.exp(sum(log_precisions) / order + min(0.0, 1 - closest / length))


# --- captions as they are ---------------------------------------------------------------------------------------------


@examples(12_000)
@given(pairs, weights, smoothing)
def test_sentence_bleu_equals_nltk(pair, weight, method):
    refs, hypothesis = pair
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = sentence_bleu(refs, hypothesis, weight, method)
    theirs = nltk_says(bleu_score.sentence_bleu, refs, hypothesis, weight, method=method)
    assert abs(ours - theirs) <= 1e-12
    assert isinstance(ours, float)


@examples(5_000)
@given(corpora, weights, smoothing)
def test_corpus_bleu_equals_nltk(corpus, weight, method):
    ours = corpus_bleu(*corpus, weight, method)
    assert abs(ours - nltk_says(bleu_score.corpus_bleu, *corpus, weight, method=method)) <= 1e-12


@examples(300)
@given(corpora, st.lists(st.integers(0, 3), min_size=1, max_size=6), weights, smoothing)
def test_statistics_of_captions_sum_to_those_of_any_corpus_of_them(corpus, drawn, weight, method):
    refs, hypotheses = corpus
    statistics = corpus_statistics(refs, hypotheses, len(weight))
    alone = [
        nltk_says(bleu_score.sentence_bleu, *caption, weight, method=method) for caption in zip(*corpus, strict=True)
    ]
    np.testing.assert_allclose(bleu(statistics, weight, method), alone, rtol=0, atol=1e-12)
    drawn = [index % len(refs) for index in drawn]  # with repeats, as a bootstrap draws
    together = bleu(BleuStatistics(*(counts[drawn].sum(0) for counts in statistics)), weight, method)
    resampled = [refs[index] for index in drawn], [hypotheses[index] for index in drawn]
    assert abs(together - nltk_says(bleu_score.corpus_bleu, *resampled, weight, method=method)) <= 1e-12


@pytest.mark.parametrize("method", range(5))
@pytest.mark.parametrize("weight", [(0.5, -0.1), (-0.2, 0.9, 0.3), (-0.1, -0.1, -0.1, -0.1), (3.0,), (0.0, 0.0)])
def test_weights_may_be_any_numbers(weight, method):
    refs, hypothesis = [list("abcabd"), list("aab")], list("abab")
    theirs = nltk_says(bleu_score.sentence_bleu, refs, hypothesis, weight, method=method)
    assert sentence_bleu(refs, hypothesis, weight, method) == pytest.approx(theirs, rel=1e-12)


@examples(300)
@given(corpora, st.sampled_from([1, 2, 3, 4]))
def test_unsmoothed_corpus_bleu_follows_the_paper(corpus, order):
    ours = corpus_bleu(*corpus, order_weights(order))
    assert ours == pytest.approx(papineni(*corpus, order), abs=1e-12)
    assert 0 <= ours <= 1 + 1e-12


@examples(200)
@given(pairs, smoothing, st.randoms(use_true_random=False))
def test_the_order_of_references_does_not_matter(pair, method, shuffler: random.Random):
    refs, hypothesis = pair
    shuffled = shuffler.sample(refs, len(refs))
    assert sentence_bleu(shuffled, hypothesis, smoothing=method) == pytest.approx(
        sentence_bleu(refs, hypothesis, smoothing=method), abs=1e-12
    )


@pytest.mark.parametrize("method", range(5))
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_copy_of_a_reference_scores_one(method, order):
    reference = "a small red circle is above a large blue ring".split()
    assert sentence_bleu(
        ["there is a dog".split(), reference], reference, order_weights(order), method
    ) == pytest.approx(1.0)


@pytest.mark.parametrize("method", range(5))
def test_a_caption_without_words_scores_nothing(method):
    assert sentence_bleu([["a", "dog"]], [], smoothing=method) == 0.0
    assert corpus_bleu([[["a", "dog"]], [["a"]]], [[], []], smoothing=method) == 0.0


def test_counts_are_clipped_as_in_the_paper():
    refs = ["the cat is on the mat".split(), "there is a cat on the mat".split()]
    assert sentence_bleu(refs, ["the"] * 7, order_weights(1)) == pytest.approx(2 / 7)


def test_a_short_caption_pays_the_brevity_penalty():
    reference = "a small red circle is above".split()
    assert sentence_bleu([reference], reference[:4], order_weights(1)) == pytest.approx(math.exp(1 - 6 / 4))
    longer_and_shorter = [list("abcdef"), list("ab")]  # 4 words are as far from 6 as from 2: the shorter counts
    assert sentence_bleu(longer_and_shorter, list("abcd"), order_weights(1)) == pytest.approx(1.0)


def test_default_is_bleu_4_without_smoothing():
    refs, hypothesis = ["a dog runs on the grass".split()], "a dog runs on grass".split()
    assert sentence_bleu(refs, hypothesis) == pytest.approx(papineni([refs], [hypothesis], 4))


def test_every_default_is_bleu_4_without_smoothing():
    refs, words = [["a", "b", "c", "d", "e"]], ["a", "b", "c", "x", "d"]  # no four words in a row
    statistics = sentence_statistics(refs, words)
    assert statistics.matches.shape == corpus_statistics([refs], [words]).matches.shape[1:] == (4,)
    assert float(bleu(statistics)) == float(bleu(statistics, BLEU4, 0)) != float(bleu(statistics, BLEU4, 1))
    assert sentence_bleu(refs, words) == sentence_bleu(refs, words, BLEU4, 0) != sentence_bleu(refs, words, BLEU4, 1)


def test_tuples_are_words_too():
    refs, hypothesis = [("a", "dog", "runs")], ("a", "dog")
    assert sentence_bleu(refs, hypothesis, smoothing=1) == sentence_bleu(
        [list(ref) for ref in refs], list(hypothesis), smoothing=1
    )


# --- what is refused --------------------------------------------------------------------------------------------------


def growing(orders=4, weight=None, method=0, refs=(("a", "b"),)):
    """One caption that grows, of ``orders``-grams."""
    table = ReferenceTable(lambda row: encoded(refs), 1, len(VOCABULARY), orders)
    return IncrementalBleu(table, 1, order_weights(orders) if weight is None else weight, method)


@pytest.mark.parametrize("method", [-1, 5, 1.5, "1", None])
def test_unknown_smoothing_is_named(method):
    for score in (
        lambda: sentence_bleu([["a"]], ["a"], smoothing=method),
        lambda: corpus_bleu([[["a"]]], [["a"]], smoothing=method),
        lambda: growing(method=method),
    ):
        with pytest.raises(ValueError, match=f"smoothing must be one of .*{method!r}"):
            score()


@pytest.mark.parametrize("order", [0, 5, 2.5, "4"])
def test_unknown_order_is_named(order):
    with pytest.raises(ValueError, match=f"order must be .*{order!r}"):
        order_weights(order)


BAD_WEIGHTS = [(), (0.5, math.nan), (math.inf,), (0.5, None), ("a",), "1", ((0.5, 0.5), (1.0, 0.0)), 0.25]


@pytest.mark.parametrize("weight", BAD_WEIGHTS, ids=repr)
def test_bad_weights_are_named(weight):
    for score in (lambda: sentence_bleu([["a"]], ["a"], weight), lambda: growing(weight=weight)):
        with pytest.raises(ValueError, match="weights must be one finite number") as caught:
            score()
        assert repr(weight) in str(caught.value)


def test_there_must_be_captions_and_references_for_each():
    with pytest.raises(ValueError, match=r"^BLEU needs at least one caption, got none$"):
        corpus_bleu([], [])
    with pytest.raises(ValueError, match="2 captions but references for 1"):
        corpus_bleu([[["a"]]], [["a"], ["a"]])
    with pytest.raises(ValueError, match="1 captions but references for 2"):
        corpus_statistics([[["a"]], [["a"]]], [["a"]])


@pytest.mark.parametrize("refs", [[], [[]], [[], []]], ids=repr)
def test_references_without_any_word_are_named(refs):
    for score in (lambda: sentence_bleu(refs, ["a"]), lambda: corpus_bleu([[["a"]], refs], [["a"], ["a"]])):
        with pytest.raises(ValueError, match="at least one reference with words") as caught:
            score()
        assert str(caught.value).endswith(f"got {refs!r}")
    with pytest.raises(ValueError, match="at least one reference with words for row 0"):
        growing(refs=refs).begin(np.array([0]), np.array([0]))


@pytest.mark.parametrize("method", range(5))
def test_one_of_several_references_may_have_no_words(method):
    refs = [[], list("abcd")]
    for words in ("a", "ab", "abcd", "ba"):  # the empty reference is as close to two words as that of four
        theirs = nltk_says(bleu_score.sentence_bleu, refs, list(words), order_weights(4), method=method)
        assert sentence_bleu(refs, list(words), smoothing=method) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("refs", ["a dog", ["a dog"], [["a", "dog"], "a dog"]], ids=repr)
def test_references_that_are_strings_are_named(refs):
    for score in (lambda: sentence_bleu(refs, ["a"]), lambda: corpus_bleu([refs], [["a"]])):
        with pytest.raises(ValueError, match="must be lists of words") as caught:
            score()
        assert repr(refs) in str(caught.value)


def test_captions_that_are_strings_are_named():
    for score in (lambda: sentence_bleu([["a", "dog"]], "a dog"), lambda: corpus_bleu([[["a", "dog"]]], ["a dog"])):
        with pytest.raises(ValueError, match="must be a list of words, got the string 'a dog'"):
            score()


def test_a_table_of_other_orders_is_refused():
    with pytest.raises(ValueError, match="4 weights but a table of 2 orders"):
        growing(orders=2, weight=order_weights(4))


# --- captions that grow -----------------------------------------------------------------------------------------------


def encoded(refs):
    """References as ids, −1 for the words that are not in the vocabulary."""
    return [[VOCABULARY.find(word) for word in reference] for reference in refs]


class Captions:
    """Growing captions, twice: in ``IncrementalBleu``, and as words for nltk."""

    def __init__(self, images, captions, weight, method, max_length):
        self.images, self.weight, self.method = images, weight, method
        table = ReferenceTable(lambda row: encoded(images[row]), len(images), len(VOCABULARY), len(weight))
        self.counted = IncrementalBleu(table, captions, weight, method, max_length)
        self.captions = [(0, ())] * captions  # row and words of each
        self.expected = {}
        self.begin(range(captions), [0] * captions)

    def begin(self, slots, rows):
        self.counted.begin(np.array(slots), np.array(rows))
        fresh = dict(zip(slots, rows, strict=True))
        self.captions = [(fresh[slot], ()) if slot in fresh else caption for slot, caption in enumerate(self.captions)]

    def fork(self, parents):
        self.counted.fork(torch.tensor(parents))
        self.captions = [self.captions[parent] for parent in parents]

    def say(self, letters):
        """Append a letter to every caption; any other character appends nothing."""
        grows = [letter in VOCABULARY for letter in letters]
        ids = [
            max(VOCABULARY.find(letter), 0) for letter in letters
        ]  # a word of a caption that does not grow must not count
        self.counted.append(torch.tensor(ids), torch.tensor(grows))
        self.captions = [
            (row, (*words, letter)) if active else (row, words)
            for (row, words), letter, active in zip(self.captions, letters, grows, strict=True)
        ]

    def play(self, scripts):
        """Append a text to each caption in step: ``<`` forks from the caption before, a digit starts a new caption."""
        for letters in itertools.zip_longest(*scripts, fillvalue="."):
            if "<" in letters:
                self.fork([slot - (letter == "<") for slot, letter in enumerate(letters)])
            if fresh := [slot for slot, letter in enumerate(letters) if letter.isdigit()]:
                self.begin(fresh, [int(letters[slot]) for slot in fresh])
            self.say(letters)
            self.check()

    def check(self):
        for ours, caption in zip(self.counted.scores().tolist(), self.captions, strict=True):
            if caption not in self.expected:
                row, words = caption
                self.expected[caption] = nltk_says(
                    bleu_score.sentence_bleu, self.images[row], list(words), self.weight, method=self.method
                )
            assert abs(ours - self.expected[caption]) <= 1e-12, caption


def scripted(letters, **sizes):
    """Texts to play, in which a letter is as frequent as in ``letters``."""
    return st.binary(**sizes).map(lambda drawn: "".join(letters[byte % len(letters)] for byte in drawn))


images = st.tuples(several, several, several)  # what captions are compared with
script = scripted("aaaabbbbcd.", max_size=8)
changing_script = scripted("aaaaabbbbbcd..012<", min_size=4, max_size=12)


@examples(3_000)
@given(images, st.tuples(script, changing_script, changing_script), weights, smoothing)
def test_captions_that_begin_grow_and_fork_at_any_time_equal_nltk(refs, scripts, weight, method):
    captions = Captions(refs, 3, weight, method, max_length=max(map(len, scripts)))
    captions.check()  # no words yet
    captions.play(scripts)


@examples(150)
@given(images, st.lists(st.tuples(changing_script, changing_script), min_size=3, max_size=3), weights, smoothing)
def test_restored_captions_grow_as_before(refs, acts, weight, method):
    captions = Captions(refs, 2, weight, method, max_length=sum(len(text) for act in acts for text in act))
    captions.play(acts[0])
    state, words = captions.counted.snapshot(), captions.captions
    for act in acts[1:]:  # twice: the snapshot must outlive what follows it
        captions.play(act)
        captions.counted.restore(state)
        captions.captions = words
        captions.check()
    captions.play(acts[1])


def test_a_state_is_restored_where_other_images_are_prepared():
    images = [[list("ab")], [list("abcdabdcab"), list("dcba")]]
    first, second = (Captions(images, 2, order_weights(4), 1, max_length=12) for _ in range(2))
    first.play(["abab", "1abcda"])  # image 1 has more n-grams than the second has columns
    second.counted.restore(first.counted.snapshot())
    second.captions = first.captions
    second.check()
    second.play(["0ab", "bdcab"])
    second.play(["1abcd", "0ba"])


def test_captions_leave_the_snapshot_and_the_words_unchanged():
    captions = Captions([[list("abcab")]], 2, order_weights(4), 1, max_length=5)
    captions.play(["ab", "b"])
    state, words = captions.counted.snapshot(), captions.captions
    before = [counts.clone() for counts in state]
    captions.play(["cab", "<0a"])
    captions.counted.restore(state)
    captions.captions = words
    captions.play(["c", "<"])
    assert all(map(torch.equal, state, before))
    ids, grows = torch.tensor([0, 1]), torch.tensor([True, False])
    captions.counted.append(ids, grows)
    assert ids.tolist() == [0, 1]
    assert grows.tolist() == [True, False]


def test_references_are_read_once_and_only_when_a_caption_begins():
    reads = []

    def references_of_row(row):
        reads.append(row)
        return [[row, 0]]

    counted = IncrementalBleu(ReferenceTable(references_of_row, 1_000, 1_000), 2)
    assert reads == []
    counted.begin(np.array([0, 1]), np.array([7, 7]))
    counted.begin(np.array([1]), np.array([999]))
    counted.begin(np.array([0, 1]), np.array([999, 7]))
    assert reads == [7, 999]


def test_some_captions_may_begin_before_the_others():
    """The counts of the others then have the documented types, and match no word."""
    table = ReferenceTable([[[0, 1]], [[0, 1, 2, 0, 1, 2, 2]]].__getitem__, 2, 3)
    counted = IncrementalBleu(table, 3)
    counted.begin(np.array([1]), np.array([0]))
    assert [counts.dtype for counts in counted.counts] == [torch.int64, torch.int16, *[torch.int64] * 3, torch.int16]
    counted.begin(np.array([2]), np.array([1]))
    known = counted.counts.keys[1] < table.SENTINEL
    assert not counted.counts.room[1][~known].any()
    assert not counted.counts.room[0].any()
    for word in (0, 1):
        counted.append(torch.full((3,), word))
    assert counted.counts.matches.sum(1).tolist() == [0, 3, 3]


def test_incremental_bleu_has_20_words_and_no_smoothing_by_default():
    table = ReferenceTable([[[0] * 25]].__getitem__, 1, 2)
    counted = IncrementalBleu(table, 1)
    counted.begin(np.array([0]), np.array([0]))
    counted.append(torch.tensor([0]))
    assert counted.scores().item() < 1e-200  # no n-gram of four words, and nothing that stands for one
    for _ in range(19):
        counted.append(torch.tensor([0]))
    assert counted.scores().item() == pytest.approx(math.exp(1 - 25 / 20), abs=1e-12)
    counted.append(torch.tensor([0]))
    with pytest.raises(IndexError):
        counted.scores()


@pytest.mark.parametrize("method", range(5))
def test_a_caption_may_be_longer_than_its_references_and_shorter(method):
    captions = Captions([[list("ab")], [list("abcdabcd") * 5]], 2, order_weights(4), method, max_length=20)
    captions.play(["abababababababababab", "1" + "abcd" * 5])  # exactly max_length words


# --- the COCO evaluation, which counts no n-gram for a caption too short for one --------------------------------------


def assert_equal_to_coco(refs, hypotheses):
    """To 8 decimals, over n-grams that are matched at all; where none is, COCO puts 1e-15 of a match."""
    coco = pytest.importorskip("pycocoevalcap.bleu.bleu")
    targets = {image: [" ".join(words) for words in captions] for image, captions in enumerate(refs)}
    results = {image: [" ".join(words)] for image, words in enumerate(hypotheses)}
    theirs, _ = coco.Bleu(4).compute_score(targets, results, verbose=0)
    matched = [order for order in (1, 2, 3, 4) if corpus_statistics(refs, hypotheses).matches.sum(0)[order - 1] > 0]
    for order in matched:
        assert corpus_bleu(refs, hypotheses, order_weights(order)) == pytest.approx(theirs[order - 1], abs=5e-9)
    return matched


@examples(300)
@given(corpora)
def test_corpus_bleu_equals_coco(corpus):
    refs, hypotheses = corpus
    assert_equal_to_coco(refs, [[*words, *"abcd"] for words in hypotheses])  # at least 4 words


def of_other_images(dataset, rows=None):
    """References of the first rows of a split, and for each image a caption of another one, of at least 4 words."""
    refs = [dataset.references(row) for row in range(rows or len(dataset))]
    long = [next((words for words in captions if len(words) >= 4), None) for captions in refs]
    rows = [row for row in range(len(refs)) if long[row - 1]]
    return [refs[row] for row in rows], [long[row - 1] for row in rows]


def test_corpus_bleu_equals_coco_on_shapes():
    assert assert_equal_to_coco(*of_other_images(Shapes("val"), 200)) == [1, 2, 3, 4]


def test_bleu_equals_coco_and_nltk_on_flickr8k(flickr8k_root):
    refs, hypotheses = of_other_images(make_dataset("flickr8k", "val", flickr8k_root))
    assert len(refs) > 900
    assert assert_equal_to_coco(refs, hypotheses) == [1, 2, 3, 4]
    for method in range(5):
        theirs = nltk_says(bleu_score.corpus_bleu, refs, hypotheses, order_weights(4), method=method)
        assert corpus_bleu(refs, hypotheses, smoothing=method) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_append_never_waits_for_a_gpu():
    table = ReferenceTable(lambda row: [[1, 2, 3, 4, row]], 8, 20)
    words = torch.randint(1, 5, (8, 6), generator=torch.Generator().manual_seed(0))
    scorers = [IncrementalBleu(table, 8, smoothing=1, device=device) for device in ("cpu", "cuda")]
    for scorer in scorers:
        scorer.begin(np.arange(8), np.arange(8))
    everyone = torch.ones(8, dtype=torch.bool)
    on_gpu = words.cuda(), everyone.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(6):
            scorers[0].append(words[:, step], everyone)
            scorers[1].append(on_gpu[0][:, step], on_gpu[1])
            scores = scorers[1].scores()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(scores.cpu(), scorers[0].scores(), atol=1e-12, rtol=0)
