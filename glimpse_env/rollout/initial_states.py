"""Where captions start: the decoder's state before the first word, worked out once an image.

Knows a decoder and a table of features. It does not know what is said after.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from glimpse_env.features.table import FeatureTable
from glimpse_env.models.decoder import DecoderState
from glimpse_env.models.frozen_decoder import FrozenDecoder

CHUNK = 16  # images whose annotations are in memory at a time; of 64 the heap keeps 20 MiB for good
KEPT_BYTES = 1 << 27  # states of more images than fit are worked out anew each time


class StartTable:
    """h₀ and c₀ of the images of a split (SAT §3.1.2), each from its mean annotation when it is first asked for.

    Args:
        decoder: makes them.
        features: annotations of the split, N images.
    """

    def __init__(self, decoder: FrozenDecoder, features: FeatureTable) -> None:
        self._decoder, self._features = decoder, features
        self._known = np.zeros(len(features), bool)
        self._keeps = 8 * len(features) * decoder.config.hidden_dim <= KEPT_BYTES
        kept = np.zeros((2, len(features) * self._keeps, decoder.config.hidden_dim), np.float32)
        self._states = torch.from_numpy(kept).to(decoder.device)  # memory is taken row by row

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> DecoderState:
        """The states of ``rows``, (B, H) each, float32."""
        if not self._keeps:
            return self._first(rows)
        fresh = rows[~self._known[rows]]
        if fresh.size:
            self._states[:, torch.from_numpy(fresh).to(self._decoder.device)] = torch.stack(self._first(fresh))
            self._known[fresh] = True
        return DecoderState(*self._states[:, torch.from_numpy(rows).to(self._decoder.device)])

    def _first(self, rows: npt.NDArray[np.int64]) -> DecoderState:
        some = (rows[begin : begin + CHUNK] for begin in range(0, max(len(rows), 1), CHUNK))
        annotations = (torch.from_numpy(self._features[part]).to(self._decoder.device) for part in some)  # (B'', L, D)
        return self._decoder.init_state(torch.cat([each.float().mean(1) for each in annotations]))
