"""A captioner in one file: encoder, decoder and vocabulary, saved as safetensors with their configuration.

Knows how the three are stored and found again. It does not know how they were trained or who will attend.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glimpse_env.core.safetensors_files import (
    FileFormatError,
    KeptWeights,
    load_weights,
    read_config,
    read_tensors,
    without_memory,
    write_tensors,
)
from glimpse_env.core.vocabulary import SPECIAL_WORDS, Vocabulary
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig

FORMAT = "glimpse-captioner-1"
_STAGE = "encoder.backbone."  # what the names of a fine-tuned stage's weights begin with
LARGEST_SIDE, SMALLEST_TILE = 1024, 4  # pixels: of the image a file may ask for, and of one location of its grid


class Captioner(nn.Module):
    """What turns glimpses into words: a CNN encoder, a caption decoder and the vocabulary they share.

    Args:
        encoder: makes annotation vectors.
        decoder: makes words; its sizes must be the encoder's and the vocabulary's.
        vocabulary: the words.
        dataset: name of the dataset it was trained on.

    Raises:
        ValueError: the three do not fit each other.
    """

    def __init__(self, encoder: CNNEncoder, decoder: CaptionDecoder, vocabulary: Vocabulary, dataset: str) -> None:
        super().__init__()
        if decoder.config.vocab_size != len(vocabulary):
            raise ValueError(
                f"the decoder says {decoder.config.vocab_size} words but the vocabulary holds {len(vocabulary)}; "
                "they must come from the same training"
            )
        if decoder.config.feature_dim != encoder.config.feature_dim:
            raise ValueError(
                f"the decoder reads annotations of length {decoder.config.feature_dim} but the encoder makes "
                f"{encoder.config.feature_dim}; they must come from the same training"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.vocabulary = vocabulary
        self.dataset = dataset


def weights_version(captioner: Captioner) -> int:
    """A number that grows whenever weights of a captioner are changed in place."""
    return sum(value._version for value in (*captioner.parameters(), *captioner.buffers()))


def save_captioner(captioner: Captioner, path: str | Path, notes: Mapping[str, Any] | None = None) -> None:
    """Write a captioner in half precision, atomically.

    Args:
        captioner: what to save. A published backbone's weights are not part of the file.
        path: the file; its folder is made when missing.
        notes: JSON-able remarks kept in the file, such as the command that trained it and its scores.
    """
    metadata = {
        "format": FORMAT,
        "dataset": captioner.dataset,
        "encoder": asdict(captioner.encoder.config),
        "decoder": asdict(captioner.decoder.config),
        "vocabulary": captioner.vocabulary.words[len(SPECIAL_WORDS) :],
        "notes": dict(notes or {}),
    }
    write_tensors(Path(path), captioner.state_dict(), metadata)


def shipped_captioners() -> list[str]:
    """Names of the captioners that come with the package."""
    files = resources.files("glimpse_env") / "assets"
    names = [file.name for file in files.iterdir()] if files.is_dir() else []
    return sorted(Path(name).stem for name in names if name.endswith(".safetensors"))


def captioner_path(name: str | Path) -> Path:
    """The file of a shipped captioner, or the one at a path.

    Raises:
        ValueError: it is no name and no path.
        FileNotFoundError: neither a shipped captioner nor a file.
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

    A network that others have published is not built before it must encode an image; if its fine-tuned stage does not
    fit, that is said then.

    Args:
        name: a shipped captioner's name, such as ``"shapes"``, or a file's path.

    Raises:
        ValueError: it is no name and no path.
        FileNotFoundError: neither a shipped captioner nor a file.
        FileFormatError: the file is cut off, of another kind, or its weights and vocabulary do not fit.
    """
    path = captioner_path(name)
    tensors, metadata = read_tensors(path, FORMAT)
    try:
        vocabulary, dataset = _words(metadata["vocabulary"]), metadata["dataset"]
        if not isinstance(dataset, str):
            raise ValueError(f"its dataset is {dataset!r}, expected a name")
        encoder_config = read_config(EncoderConfig, metadata["encoder"])
        decoder_config = read_config(DecoderConfig, metadata["decoder"])
        _check_image(encoder_config)
        stage = _kept_stage(path, tensors) if encoder_config.weights == "tuned" else None
        with without_memory():  # for what a file only claims
            encoder, decoder = CNNEncoder(encoder_config, stage), CaptionDecoder(decoder_config)
            captioner = Captioner(encoder, decoder, vocabulary, dataset)
    except RuntimeError as error:
        raise FileFormatError(
            f"{str(path)!r}: its configuration asks for sizes that no file holds ({error})"
        ) from error
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{str(path)!r}: {error}; fetch or train the captioner again") from error
    load_weights(path, captioner, tensors)
    return captioner.eval().requires_grad_(False)


def _words(held: object) -> Vocabulary:
    if not isinstance(held, list) or not all(isinstance(word, str) for word in held):
        raise ValueError("its vocabulary is not a list of words")
    return Vocabulary(held)


def _check_image(encoder: EncoderConfig) -> None:
    """Refuse an image, or a grid, that is larger than a file may ask for.

    Raises:
        ValueError: it is.
    """
    if encoder.image_size > LARGEST_SIDE or max(encoder.grid) * SMALLEST_TILE > encoder.image_size:
        raise ValueError(
            f"its encoder sees {encoder.image_size} px as a grid {encoder.grid}; expected at most {LARGEST_SIDE} px "
            f"and at least {SMALLEST_TILE} px a location"
        )


def _kept_stage(path: Path, tensors: Mapping[str, Tensor]) -> KeptWeights:
    """The fine-tuned last stage, which needs a network only when an image must be encoded."""
    stage = {name.removeprefix(_STAGE): held for name, held in tensors.items() if name.startswith(_STAGE)}
    if not stage:
        raise ValueError(f"its encoder has a fine-tuned stage, but there is no weight named {_STAGE}...")
    return KeptWeights(path, stage)
