"""Scores of captions against references, as rewards and as metrics in reports."""

from glimpse_env.metrics.bleu import corpus_bleu, sentence_bleu
from glimpse_env.metrics.caption_metrics import METRICS, Metric, caption_scores, find_metric
from glimpse_env.metrics.cider import DocumentFrequencies, cider_d
from glimpse_env.metrics.edit_distance import corpus_error_rate, error_rate
from glimpse_env.metrics.incremental_bleu import IncrementalBleu
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward, CiderReward, RewardFn, RougeReward, make_reward, register_reward
from glimpse_env.metrics.rouge import rouge_l

__all__ = [
    "METRICS",
    "BleuReward",
    "CiderReward",
    "DocumentFrequencies",
    "IncrementalBleu",
    "Metric",
    "RewardFn",
    "RougeReward",
    "SplitReferences",
    "caption_scores",
    "cider_d",
    "corpus_bleu",
    "corpus_error_rate",
    "error_rate",
    "find_metric",
    "make_reward",
    "register_reward",
    "rouge_l",
    "sentence_bleu",
]
