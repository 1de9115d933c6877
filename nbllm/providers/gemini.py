"""Google's Gemini API: its wire format from and to OpenAI's chat format; embeddings.

Requests are made in `gemini_requests`, their conversations in `gemini_contents`; `gemini_answers` reads
answers and streams by the shapes of `gemini_shapes`; `gemini_embeddings` has both directions. Source of all:
Gemini API reference (v1beta), "Generating content", "Embeddings", with the guides "Function calling",
"Thinking", "Thought signatures", "Structured output". Where Google's own layer for OpenAI clients has a name
or a mapping (guide "OpenAI compatibility"), these modules take the same.
"""

from __future__ import annotations

from .gemini_answers import chat_response, chunk_decoder
from .gemini_embeddings import embedding_request, embedding_response
from .gemini_requests import chat_request

__all__ = ["chat_request", "chat_response", "chunk_decoder", "embedding_request", "embedding_response"]
