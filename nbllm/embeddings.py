"""Embeddings as results: what they hold, and how a cell shows them.

Knows nothing of HTTP; providers make them. Source of the shapes: OpenAI's API reference, "Embeddings".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from .results import Result
from .types import Object, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Embedding(Object):
    """The embedding of one input."""

    object: str | None = None
    index: int | None = None
    if TYPE_CHECKING:
        embedding: list[float] = []
    else:  # what the wire carries: base64 of little-endian float32, which msgspec gives as bytes, or numbers
        embedding: bytes | Sequence[float] | None = None  # not list, which `types.build` takes for objects

    def __repr__(self) -> str:
        return f"Embedding(index={self.index}, {dimensions(self)} floats)"


class _Floats:
    """The field `embedding`: bytes as they came until somebody reads it, from then on a list of floats."""

    def __init__(self, slot: Any) -> None:
        self.slot = slot

    def __get__(self, row: Embedding | None, owner: Any = None) -> Any:
        if row is None:
            return self
        value = self.slot.__get__(row)
        if isinstance(value, bytes):
            value = _vector(value).tolist()
            self.slot.__set__(row, value)
        return value

    def __set__(self, row: Embedding, value: Any) -> None:
        try:
            value = msgspec.convert(value, bytes | list[float])
        except msgspec.ValidationError as error:
            raise msgspec.DecodeError(f"an embedding is neither numbers nor base64: {error}") from None
        self.slot.__set__(row, value)


_SLOT: Any = Embedding.embedding
Embedding.embedding = _Floats(_SLOT)  # type: ignore[assignment]


def dimensions(row: Embedding) -> int:
    """How many floats an embedding has; 0 where it is missing.

    Raises:
        msgspec.DecodeError: Its bytes are not a whole number of float32.
    """
    value = _SLOT.__get__(row)
    if not isinstance(value, bytes):
        return len(value or ())
    if len(value) % 4:
        raise msgspec.DecodeError(f"an embedding of {len(value)} bytes is not made of float32")
    return len(value) // 4


def _vector(value: bytes | list[float]) -> NDArray[np.float32]:
    import numpy as np

    return np.frombuffer(value, "<f4") if isinstance(value, bytes) else np.array(value, np.float32)


class EmbeddingResponse(Result):
    """The embeddings of all inputs, in the order of the inputs."""

    object: str | None = None
    data: list[Embedding] = []
    model: str | None = None
    usage: Usage | None = None

    @property
    def array(self) -> NDArray[np.float32]:
        """All embeddings as a new array of shape (inputs, dimensions)."""
        import numpy as np

        if not self.data:
            return np.empty((0, 0), np.float32)
        return np.stack([_vector(_SLOT.__get__(row)) for row in self.data]).astype(np.float32, copy=False)

    def __repr__(self) -> str:
        floats = dimensions(self.data[0]) if self.data else 0
        return (
            f"EmbeddingResponse(model={self.model!r}, {len(self.data)} embeddings of {floats} floats, "
            f"usage={self.usage!r})"
        )
