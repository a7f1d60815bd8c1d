"""The options of decoding that evaluation, captioning and other commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner
from glimpse_env.rollout.beam_search import BeamSearch, Captioned
from glimpse_env.rollout.decode import Decoding, Policy, decode, make_decoding
from glimpse_env.rollout.word_sampling import WordSampling
from train.common.options import CommonOptions


@dataclass
class DecodingOptions(CommonOptions):
    """How words and glimpses are chosen."""

    decode: Decoding = "greedy"
    """How the words are chosen."""
    temperature: float = 1.0
    """Divides the logits before a draw (sample, top-k, top-p)."""
    top_k: int = 10
    """Words that top-k keeps."""
    top_p: float = 0.9
    """Mass that top-p keeps."""
    beam_width: int = 3
    """Hypotheses an image (beam)."""
    length_normalisation: float = 0.0
    """Exponent of the length that a caption's log-probability is divided by (beam)."""
    block_ngram: int = 0
    """Never say an n-gram of this length twice (beam); 0 allows it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the products; bfloat16 is faster where the processor multiplies it natively."""
    stochastic: bool = False
    """Let the agent draw its glimpses instead of taking the likeliest."""

    @property
    def decoding(self) -> WordSampling | BeamSearch:
        """The decoding with these options; raises as ``make_decoding`` does."""
        return make_decoding(
            self.decode,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            beam_width=self.beam_width,
            length_normalisation=self.length_normalisation,
            block_ngram=self.block_ngram,
        )

    def make_captions(
        self, captioner: Captioner, features: FeatureTable, agent: Policy, rows: range, longest: int, label: str | None
    ) -> list[Captioned]:
        """Caption ``rows`` of a table in at most ``longest`` words each, with a progress bar if it has a ``label``."""
        return decode(
            captioner,
            features,
            agent,
            rows,
            self.decoding,
            deterministic=not self.stochastic,
            rng=np.random.default_rng(self.seed),
            max_caption_length=longest,
            device=self.device,
            dtype=getattr(torch, self.precision),
            progress=label,
        )
