"""Answers that were given before: keyed by the artifact and the input's bytes, bounded in bytes, least used leaves."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

Outputs = Mapping[str, np.ndarray]
OVERHEAD = 300  # bytes that an entry takes besides its arrays


class ResultCache:
    """Outputs by key. `limit`: bytes in all, 0 for no cache; `largest`: bytes of an input above which none is kept.

    The artifact's sha256 is part of the key, so that an answer is never an earlier version's.
    """

    def __init__(self, limit: int, largest: int) -> None:
        self.limit, self.largest = limit, largest
        self.bytes = self.hits = self.misses = self.evictions = 0
        self._kept: OrderedDict[bytes, tuple[Outputs, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def key(self, sha256: str, inputs: Mapping[str, np.ndarray]) -> bytes | None:
        """The key of a request; None where it is not to be kept."""
        if not self.limit or sum(value.nbytes for value in inputs.values()) > self.largest:
            return None
        digest = hashlib.sha256(sha256.encode())
        for name in sorted(inputs):
            value = inputs[name]
            digest.update(f"{name}\0{value.dtype.str}{value.shape}\0".encode())
            digest.update(np.ascontiguousarray(value).data if value.size else b"")
        return digest.digest()

    def get(self, key: bytes | None) -> Outputs | None:
        """What was answered, or None; counted."""
        if key is None:
            return None
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self._kept.move_to_end(key)
        self.hits += 1
        return found[0]

    def put(self, key: bytes | None, outputs: Outputs) -> None:
        """Keep an answer; what was used longest ago leaves."""
        if key is None or key in self._kept:
            return
        # A row of a larger batch would keep the whole batch in memory.
        owned = {name: value if value.base is None else value.copy() for name, value in outputs.items()}
        size = OVERHEAD + sum(value.nbytes for value in owned.values())
        if size > self.limit:
            return
        self._kept[key] = (owned, size)
        self.bytes += size
        while self.bytes > self.limit:
            _, (_, freed) = self._kept.popitem(last=False)
            self.bytes -= freed
            self.evictions += 1
