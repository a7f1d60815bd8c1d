"""Captioners: encoder, decoder and vocabulary, stored in one safetensors file with their configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glimpse_env.core import safetensors_files
from glimpse_env.core.safetensors_files import DeferredWeights, FileFormatError
from glimpse_env.core.vocabulary import SPECIAL_WORDS, Vocabulary
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig
from glimpse_env.models.encoders.base import Encoder
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig

FORMAT = "glimpse-captioner-1"
_STAGE = "encoder.backbone."  # prefix of the names of a fine-tuned stage's weights


class Captioner(nn.Module):
    """A captioning model without its attention: an encoder, a caption decoder and the vocabulary they share.

    ``dataset`` is the name of the dataset it was trained on.

    Raises:
        ValueError: sizes of encoder, decoder and vocabulary do not match.
    """

    encoder: Any  # an Encoder; training and weights files need a CNNEncoder

    def __init__(self, encoder: Encoder, decoder: CaptionDecoder, vocabulary: Vocabulary, dataset: str) -> None:
        super().__init__()
        if decoder.config.vocab_size != len(vocabulary):
            raise ValueError(
                f"the decoder says {decoder.config.vocab_size} words but the vocabulary holds {len(vocabulary)}; "
                "they must come from the same training"
            )
        if decoder.config.feature_dim != encoder.feature_dim:
            raise ValueError(
                f"the decoder reads annotations of length {decoder.config.feature_dim} but the encoder makes "
                f"{encoder.feature_dim}; they must come from the same training"
            )
        self.encoder, self.decoder, self.vocabulary, self.dataset = encoder, decoder, vocabulary, dataset


def weights_version(captioner: Captioner) -> int:
    """A number that increases whenever weights of a captioner are changed in place."""
    return sum(value._version for value in (*captioner.parameters(), *captioner.buffers()))


def save_captioner(captioner: Captioner, path: str | Path, notes: Mapping[str, Any] | None = None) -> None:
    """Write a captioner in half precision, atomically, without the weights of a published backbone.

    Args:
        captioner: the captioner.
        path: the file; its folder is created if it is missing.
        notes: JSON-able remarks to store, such as the command that trained it and its scores.

    Raises:
        TypeError: its encoder is no ``CNNEncoder``.
    """
    if not isinstance(captioner.encoder, CNNEncoder):
        raise TypeError(f"only captioners with a CNNEncoder can be saved, and this one has {captioner.encoder!r}")
    metadata = {
        "format": FORMAT,
        "dataset": captioner.dataset,
        "encoder": asdict(captioner.encoder.config),
        "decoder": asdict(captioner.decoder.config),
        "vocabulary": captioner.vocabulary.words[len(SPECIAL_WORDS) :],
        "notes": dict(notes or {}),
    }
    safetensors_files.write_tensors(Path(path), captioner.state_dict(), metadata)


def shipped_captioners() -> list[str]:
    """Names of the captioners that come with the package."""
    files = resources.files("glimpse_env") / "assets"
    names = [file.name for file in files.iterdir()] if files.is_dir() else []
    return sorted(Path(name).stem for name in names if name.endswith(".safetensors"))


def captioner_path(name: str | Path) -> Path:
    """The file of a shipped captioner, or the one at a path.

    Raises:
        ValueError: ``name`` is no name and no path.
        FileNotFoundError: there is no such captioner.
    """
    shipped = shipped_captioners()
    if not isinstance(name, (str, Path)) or not str(name):
        raise ValueError(
            f"captioner {name!r} is no name and no path; expected the path of a file or one of {', '.join(shipped)}"
        )
    if str(name) in shipped:
        return Path(str(resources.files("glimpse_env") / "assets" / f"{name}.safetensors"))
    if not os.path.isfile(name):  # noqa: PTH113 (Path.is_file raises where a name is too long for a file)
        raise FileNotFoundError(
            f"no captioner {str(name)!r}: neither a file nor a shipped one ({', '.join(shipped)}); "
            "train one with: python -m train.captioner"
        )
    return Path(name)


def load_captioner(name: str | Path) -> Captioner:
    """Load a captioner, frozen and in evaluation mode.

    A published backbone is built when the first image is encoded; a fine-tuned stage that does not fit it is refused
    then.

    Args:
        name: a shipped captioner's name, such as ``"shapes"``, or a file's path.

    Raises:
        ValueError: ``name`` is no name and no path.
        FileNotFoundError: there is no such captioner.
        FileFormatError: the file is truncated, of another kind, or its weights and vocabulary do not fit.
    """
    path = captioner_path(name)
    tensors, metadata = safetensors_files.read_tensors(path, FORMAT)
    try:
        words, dataset = metadata["vocabulary"], metadata["dataset"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("its vocabulary is not a list of words")
        if not isinstance(dataset, str):
            raise ValueError(f"its dataset is {dataset!r}, expected a name")
        encoder_config = safetensors_files.read_config(EncoderConfig, metadata["encoder"])
        decoder_config = safetensors_files.read_config(DecoderConfig, metadata["decoder"])
        stage = _tuned_stage(path, tensors) if encoder_config.weights == "tuned" else None
        with safetensors_files.init_empty_weights():  # sizes of a file are not believed before its weights fit
            encoder, decoder = CNNEncoder(encoder_config, stage), CaptionDecoder(decoder_config)
            captioner = Captioner(encoder, decoder, Vocabulary(words), dataset)
    except RuntimeError as error:
        raise FileFormatError(
            f"{str(path)!r}: its configuration asks for sizes that no file holds ({error})"
        ) from error
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{str(path)!r}: {error}; fetch or train the captioner again") from error
    safetensors_files.load_weights(path, captioner, tensors)
    return captioner.eval().requires_grad_(False)


def _tuned_stage(path: Path, tensors: Mapping[str, Tensor]) -> DeferredWeights:
    """Weights of the fine-tuned last stage, for the backbone that is built when the first image is encoded."""
    stage = {name.removeprefix(_STAGE): tensor for name, tensor in tensors.items() if name.startswith(_STAGE)}
    if not stage:
        raise ValueError(f"its encoder has a fine-tuned stage, but there is no weight named {_STAGE}...")
    return DeferredWeights(path, stage)
