"""The decoder's states before the first word, computed once for each image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from glimpse_env.features.table import FeatureTable
from glimpse_env.models.decoder import DecoderState, mean_annotation
from glimpse_env.models.frozen_decoder import FrozenDecoder

CHUNK = 16  # images whose annotations are in memory at a time; of 64 the heap keeps 20 MiB for good
CACHE_BYTES = 1 << 27  # states of larger splits are computed again at every access


class InitialStates:
    """h₀ and c₀ of the images of a split (SAT §3.1.2), each computed from its mean annotation at the first access."""

    def __init__(self, decoder: FrozenDecoder, features: FeatureTable) -> None:
        self._decoder, self._features = decoder, features
        self._computed = np.zeros(len(features), bool)
        self._caches = 8 * len(features) * decoder.config.hidden_dim <= CACHE_BYTES
        states = np.zeros((2, len(features) * self._caches, decoder.config.hidden_dim), np.float32)
        self._states = torch.from_numpy(states).to(decoder.device)  # memory is taken row by row

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> DecoderState:
        """The states of ``rows``, (B, H) each, float32."""
        if not self._caches:
            return self._compute(rows)
        missing = rows[~self._computed[rows]]
        if missing.size:
            self._states[:, torch.from_numpy(missing).to(self._decoder.device)] = torch.stack(self._compute(missing))
            self._computed[missing] = True
        return DecoderState(*self._states[:, torch.from_numpy(rows).to(self._decoder.device)])

    def _compute(self, rows: npt.NDArray[np.int64]) -> DecoderState:
        means = []
        for begin in range(0, max(len(rows), 1), CHUNK):
            annotations = torch.from_numpy(self._features[rows[begin : begin + CHUNK]]).to(self._decoder.device)
            masks = self._features.location_masks(rows[begin : begin + CHUNK], self._decoder.device)
            means.append(mean_annotation(annotations.float(), masks))  # (CHUNK, D)
        return self._decoder.init_state_from_means(torch.cat(means))
