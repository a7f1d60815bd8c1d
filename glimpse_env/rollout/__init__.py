"""Caption episodes in batches: the transition, word sampling, decoding and beam search."""

from glimpse_env.rollout.beam_search import BeamSearch, Captioned
from glimpse_env.rollout.decode import Policy, decode, make_decoding
from glimpse_env.rollout.dynamics import CaptionDynamics
from glimpse_env.rollout.word_sampling import WordSampling

__all__ = ["BeamSearch", "CaptionDynamics", "Captioned", "Policy", "WordSampling", "decode", "make_decoding"]
