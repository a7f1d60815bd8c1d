"""BLEU is counted where the default reward or a metric asks for it, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from glimpse_env.datasets.shapes import Shapes
from glimpse_env.features.build import open_features
from glimpse_env.metrics.batch_bleu import BatchBleu
from glimpse_env.metrics.bleu import order_weights, sentence_bleu
from glimpse_env.metrics.edit_distance import exact
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward, exact_reward
from glimpse_env.rollout.dynamics import CaptionDynamics

EPISODES = 4


@pytest.mark.parametrize(
    ("reward", "shaped", "metrics", "counted"),
    [
        (BleuReward(), False, ("bleu",), True),
        (BleuReward(), False, ("exact",), True),
        (BleuReward(), True, ("exact",), False),
        (exact_reward, False, ("exact",), False),
        (exact_reward, False, ("exact", "bleu"), True),
        (exact_reward, True, ("bleu",), True),
    ],
)
def test_bleu_is_counted_only_where_it_is_asked_for(captioner, monkeypatch, reward, shaped, metrics, counted):
    count, scores = [], BatchBleu.scores
    monkeypatch.setattr(BatchBleu, "scores", lambda self, *captions: count.append(1) or scores(self, *captions))
    dataset = Shapes("val")
    references = SplitReferences(dataset, captioner.vocabulary)
    dynamics = CaptionDynamics(
        captioner,
        open_features(dataset, captioner.encoder),
        references,
        reward,
        metrics=metrics,
        num_episodes=EPISODES,
        shaped=shaped,
    )
    dynamics.begin(np.arange(EPISODES), np.arange(EPISODES))
    returns = np.zeros(EPISODES)
    while not dynamics.episodes.ended.all():
        returns += dynamics.step(np.arange(EPISODES)).rewards
    assert bool(count) is counted
    for episode in range(EPISODES):
        words, refs = dynamics.caption(episode), dataset.references(episode)
        expected = {
            "exact": [exact(refs, words)],
            "bleu": [sentence_bleu(refs, words, order_weights(order), 1) for order in (1, 2, 3, 4)],
        }
        for name, columns in dynamics.metric_columns.items():
            assert dynamics.episodes.metrics[episode, columns] == pytest.approx(expected[name])
        assert returns[episode] == pytest.approx(reward(refs, words, dynamics.has_end(episode)))
