"""Encoders: inputs, such as images, to annotation vectors."""

from glimpse_env.models.encoders.base import Encoder
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig

__all__ = ["CNNEncoder", "Encoder", "EncoderConfig"]
