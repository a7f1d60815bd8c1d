"""A captioner in one file: encoder, decoder and vocabulary, saved as safetensors with their configuration.

Knows how the three are stored and found again. It does not know how they were trained or who will attend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glimpse_env.decoder import CaptionDecoder, DecoderConfig
from glimpse_env.encoder import CNNEncoder, EncoderConfig
from glimpse_env.vocabulary import SPECIAL_WORDS, Vocabulary
from glimpse_env.weights import FileFormatError, check_fit, load_weights, read_config, read_tensors, write_tensors

FORMAT = "glimpse-captioner-1"
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
        FileNotFoundError: neither a shipped captioner nor a file.
    """
    shipped = shipped_captioners()
    if str(name) in shipped:
        return Path(str(resources.files("glimpse_env") / "assets" / f"{name}.safetensors"))
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"no captioner {str(name)!r}: neither a file nor a shipped one ({', '.join(shipped)}); "
            "train one with: python -m train.captioner"
        )
    return Path(name)


def load_captioner(name: str | Path) -> Captioner:
    """Load a captioner, frozen and in evaluation mode.

    Args:
        name: a shipped captioner's name, such as ``"shapes"``, or a file's path.

    Raises:
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
        with torch.random.fork_rng(devices=()):  # modules draw a start of their own, which the file replaces
            _check_sizes(path, encoder_config, decoder_config, vocabulary, tensors)
            captioner = Captioner(CNNEncoder(encoder_config), CaptionDecoder(decoder_config), vocabulary, dataset)
    except FileFormatError:
        raise
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{str(path)!r}: {error}; fetch or train the captioner again") from error
    load_weights(path, captioner, tensors)
    return captioner.eval().requires_grad_(False)


def _words(held: object) -> Vocabulary:
    if not isinstance(held, list) or not all(isinstance(word, str) for word in held):
        raise ValueError("its vocabulary is not a list of words")
    return Vocabulary(held)


def _check_sizes(
    path: Path, encoder: EncoderConfig, decoder: DecoderConfig, vocabulary: Vocabulary, tensors: Mapping[str, Tensor]
) -> None:
    """Hold the sizes a file claims against its tensors, without memory for modules of those sizes.

    A fine-tuned stage is as large as its network's name says, and is left out.

    Raises:
        FileFormatError: they differ.
        ValueError: no tensor could be of such a size, or the image or its grid is larger than a file may ask for.
    """
    if encoder.image_size > LARGEST_SIDE or max(encoder.grid) * SMALLEST_TILE > encoder.image_size:
        raise ValueError(
            f"its encoder sees {encoder.image_size} px as a grid {encoder.grid}; expected at most {LARGEST_SIDE} px "
            f"and at least {SMALLEST_TILE} px a location"
        )
    tuned = encoder.weights == "tuned"
    unbuilt = replace(encoder, weights="published") if tuned else encoder
    try:
        with torch.device("meta"):
            claimed = Captioner(CNNEncoder(unbuilt), CaptionDecoder(decoder), vocabulary, "")
    except RuntimeError as error:
        raise ValueError(f"its configuration asks for sizes that no file holds ({error})") from error
    checked = {name: held for name, held in tensors.items() if not (tuned and name.startswith("encoder.backbone."))}
    check_fit(path, claimed, checked)
