"""The captioner's networks: encoders, the caption decoder, and the decoder for inference."""

from glimpse_env.models.captioner import Captioner, load_captioner, save_captioner, shipped_captioners
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig, DecoderState
from glimpse_env.models.frozen_decoder import FrozenDecoder

__all__ = [
    "CaptionDecoder",
    "Captioner",
    "DecoderConfig",
    "DecoderState",
    "FrozenDecoder",
    "load_captioner",
    "save_captioner",
    "shipped_captioners",
]
