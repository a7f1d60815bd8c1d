"""Words of captions and their ids."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nltk.tokenize import TreebankWordTokenizer

from glimpse_env.core.vocabulary import SPECIAL_WORDS, Vocabulary, tokenize

CAPTIONS = [["a", "dog", "runs"], ["a", "dog"], ["a", "cat", "runs"], ["zebra"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog .", "a dog"),
        ('Two "big" dogs, running!', "two big dogs running"),
        ("A man's T-shirt", "a man 's t-shirt"),
        ("the boys' toys", "the boys toys"),
        ("don't stop", "don't stop"),
        ("a two-year-old (girl)", "a two-year-old girl"),
        ("café_2 naïve", "café 2 naïve"),
        ("an a-s b", "an a-s b"),
        ("dog's_ cat", "dog 's cat"),
        ("-- ... --", ""),
        ("", ""),
    ],
)
def test_tokenize(text, words):
    assert tokenize(text) == words.split()


@pytest.mark.parametrize(
    "text",
    [
        "The man 's red-haired dog , wet and cold , jumps .",
        "A girl's kite; it flies high!",
        "3 men, 2 dogs & a T-shirt",
    ],
)
def test_tokenize_agrees_with_the_penn_treebank(text):
    tokens = TreebankWordTokenizer().tokenize(text.lower())
    assert tokenize(text) == [token for token in tokens if any(map(str.isalnum, token))]


@example("0-s_")
@example("0's_")
@given(st.text(alphabet=st.sampled_from("aBcs09é'-_,. \n\"")))
def test_tokens_are_words_and_stay_whole_when_read_again(text):
    words = tokenize(text)
    assert all(re.fullmatch(r"[^\W_A-Z]+(?:['-][^\W_A-Z]+)*|'s", word) for word in words)
    assert tokenize(" ".join(words)) == words
    letters = re.sub(r"[\W_]", "", text.lower())
    assert re.sub(r"[\W_]", "", "".join(words)) == letters  # no letter is lost or made up


def test_special_words_come_first():
    vocabulary = Vocabulary(["dog", "cat"])
    assert vocabulary.words == ("<pad>", "<start>", "<end>", "<unk>", "dog", "cat")
    special = (vocabulary.pad, vocabulary.start, vocabulary.end, vocabulary.unk)
    assert special == tuple(vocabulary.encode(SPECIAL_WORDS)) == (0, 1, 2, 3)
    assert len(vocabulary) == 6


def test_encode_and_decode_are_inverse_but_for_unknown_words():
    vocabulary = Vocabulary(["dog", "cat"])
    assert vocabulary.decode(vocabulary.encode(["cat", "dog", "<end>"])) == ["cat", "dog", "<end>"]
    assert vocabulary.encode(["cow", "cat"]) == [vocabulary.unk, 5]
    assert vocabulary.decode(vocabulary.encode(["cow"])) == ["<unk>"]
    assert "cat" in vocabulary
    assert "cow" not in vocabulary


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), max_size=8), st.integers(1, 4))
def test_from_captions_keeps_frequent_words_most_frequent_first(captions, min_count):
    counts = Counter(word for caption in captions for word in caption)
    words = Vocabulary.from_captions(captions, min_count).words[len(SPECIAL_WORDS) :]
    assert set(words) == {word for word in counts if counts[word] >= min_count}
    keys = [(-counts[word], word) for word in words]
    assert keys == sorted(keys)


def test_from_captions_does_not_depend_on_their_order():
    assert Vocabulary.from_captions(CAPTIONS) == Vocabulary.from_captions(CAPTIONS[::-1])
    assert hash(Vocabulary.from_captions(CAPTIONS)) == hash(Vocabulary.from_captions(CAPTIONS[::-1]))
    assert Vocabulary.from_captions(CAPTIONS) != Vocabulary.from_captions(CAPTIONS, min_count=2)


@pytest.mark.parametrize(
    ("words", "message"), [(["dog", "dog"], "'dog' twice"), (["<end>"], "'<end>' twice"), ([""], "empty word")]
)
def test_words_that_cannot_be_told_apart_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(words)


def test_a_special_word_in_captions_is_refused():
    with pytest.raises(ValueError, match="'<unk>' twice"):
        Vocabulary.from_captions([["a", "<unk>"]])


def test_coverage():
    assert Vocabulary(["a", "dog"]).coverage(CAPTIONS) == 5 / 9
    assert Vocabulary(["a"]).coverage([]) == 0
