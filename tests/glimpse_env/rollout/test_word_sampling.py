"""Words are chosen as their decoding says: likeliest, or drawn from the whole, or from the likeliest few."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glimpse_env.rollout.word_sampling import WordSampling

LOGITS = torch.tensor([1.2, -0.3, 2.0, 0.1, -1.5, 1.9])
CHI2_999 = {5: 20.515, 2: 13.816}  # 0.999 quantiles by degrees of freedom


def softmax(logits, temperature=1.0):
    logits = np.asarray(logits, float)
    scaled = np.exp((logits - logits.max()) / temperature)
    return scaled / scaled.sum()


def draw(sampling, logits, uniforms):
    uniforms = torch.as_tensor(uniforms, dtype=torch.float64)
    return sampling.choose(logits.expand(len(uniforms), -1), uniforms).numpy()


def grid(count):
    """The middle of every one of ``count`` equal parts of [0, 1): what exact inversion turns into exact shares."""
    return (np.arange(count) + 0.5) / count


def random_logits(seed, rows=50, vocabulary=12):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def test_greedy_takes_the_likeliest_and_needs_no_numbers():
    logits = random_logits(0)
    sampling = WordSampling()
    assert not sampling.random
    assert sampling.choose(logits).tolist() == [max(range(12), key=row.__getitem__) for row in logits.tolist()]


@pytest.mark.parametrize(
    "sampling",
    [
        WordSampling("sample", temperature=1e-6),
        WordSampling("sample", temperature=1e-320),
        WordSampling("top-k", top_k=1),
        WordSampling("top-k", temperature=50.0, top_k=1),
        WordSampling("top-p", top_p=1e-9),
        WordSampling("top-p", temperature=1e-6, top_p=1.0),
    ],
    ids=str,
)
def test_narrow_draws_are_greedy(sampling):
    logits = random_logits(1)
    uniforms = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert sampling.random
    assert torch.equal(sampling.choose(logits, uniforms), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_shares_follow_the_softmax(temperature):
    sampling = WordSampling("sample", temperature=temperature)
    shares = np.bincount(draw(sampling, LOGITS, grid(10_000)), minlength=6) / 10_000
    np.testing.assert_allclose(shares, softmax(LOGITS, temperature), atol=1.01e-4)
    drawn = draw(sampling, LOGITS, np.random.default_rng(0).random(20_000))
    expected = softmax(LOGITS, temperature) * 20_000
    chi2 = ((np.bincount(drawn, minlength=6) - expected) ** 2 / expected).sum()
    assert chi2 < CHI2_999[5]


def test_top_k_draws_from_the_k_likeliest_by_their_shares():
    drawn = draw(WordSampling("top-k", top_k=3), LOGITS, np.random.default_rng(1).random(20_000))
    assert set(drawn) == {2, 5, 0}
    expected = softmax(LOGITS[[0, 2, 5]]) * 20_000
    chi2 = ((np.bincount(drawn, minlength=6)[[0, 2, 5]] - expected) ** 2 / expected).sum()
    assert chi2 < CHI2_999[2]


@pytest.mark.parametrize("k", [1, 2, 5, 12, 100])
def test_top_k_never_leaves_the_k_likeliest(k):
    for row in random_logits(3, rows=10):
        best = set(sorted(range(12), key=lambda word: -row[word])[:k])
        assert set(draw(WordSampling("top-k", temperature=20.0, top_k=k), row, grid(500))) == best


@pytest.mark.parametrize("p", [0.05, 0.4, 0.75, 0.9, 0.999])
def test_top_p_draws_from_the_smallest_set_with_that_mass(p):
    for row in random_logits(4, rows=10):
        probabilities = softmax(row)
        nucleus, mass = [], 0.0
        for word in sorted(range(12), key=lambda word: -probabilities[word]):
            nucleus.append(word)
            mass += probabilities[word]
            if mass >= p:
                break
        shares = np.bincount(draw(WordSampling("top-p", top_p=p), row, grid(5000)), minlength=12) / 5000
        expected = np.zeros(12)
        expected[nucleus] = probabilities[nucleus] / mass
        np.testing.assert_allclose(shares, expected, atol=2.1e-4)
        outside = [word for word in range(12) if word not in nucleus]
        assert shares[outside].sum() == 0


def test_top_p_counts_mass_that_is_just_enough():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64))
    assert set(draw(WordSampling("top-p", top_p=0.5), logits, grid(100))) == {0}
    assert set(draw(WordSampling("top-p", top_p=0.51), logits, grid(100))) == {0, 1}
    assert set(draw(WordSampling("top-p", top_p=1.0), logits, grid(100))) == {0, 1, 2, 3}


@pytest.mark.parametrize("method", ["sample", "top-k", "top-p"])
def test_words_that_may_not_be_said_are_never_drawn(method):
    logits = torch.tensor([-torch.inf, 1.0, -torch.inf, 1.0, 0.5, -torch.inf])
    uniforms = [0.0, 1e-300, 0.5, np.nextafter(1.0, 0.0), *grid(1000)]
    assert set(draw(WordSampling(method, top_k=6, top_p=1.0), logits, uniforms)) == {1, 3, 4}


def test_rows_are_drawn_apart():
    logits = random_logits(5, rows=20)
    uniforms = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    for sampling in (WordSampling("sample"), WordSampling("top-k", top_k=4), WordSampling("top-p", top_p=0.8)):
        together = sampling.choose(logits, uniforms)
        apart = [sampling.choose(logits[[i]], uniforms[[i]]).item() for i in range(20)]
        assert together.tolist() == apart


def test_drawing_without_numbers_is_an_error():
    with pytest.raises(ValueError, match="'top-p' draws words and needs one uniform number"):
        WordSampling("top-p").choose(LOGITS.unsqueeze(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "beam"}, "unknown decoding 'beam'; expected one of greedy, sample, top-k, top-p"),
        ({"temperature": 0.0}, "temperature .*0.0"),
        ({"temperature": -1.0}, "temperature .*-1.0"),
        ({"temperature": float("nan")}, "temperature .*nan"),
        ({"temperature": float("inf")}, "temperature .*inf"),
        ({"top_k": 0}, "top_k .*0"),
        ({"top_k": -3}, "top_k .*-3"),
        ({"top_p": 0.0}, "top_p .*0.0"),
        ({"top_p": 1.01}, "top_p .*1.01"),
        ({"top_p": float("nan")}, "top_p .*nan"),
    ],
)
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        WordSampling(**arguments)
