"""Anthropic's Messages API: its wire format from and to OpenAI's chat format.

Requests are made in `anthropic_requests`, their conversations in `anthropic_messages`; answers are read in
`anthropic_answers`, streams in `anthropic_streams`. Source of all four: Anthropic API reference, "Messages",
"Streaming messages", "Errors"; guides "Tool use", "Extended thinking", "Adaptive thinking", "Effort",
"Structured outputs", "Prompt caching", "Handling stop reasons".

What the two formats have no common word for: blocks of the provider's own tools (a web search and its
results) are not in the answer, only the text and its `citations`; an answer has no `created`; `stop_sequence`
and `stop_details` stand in the message; stop reasons that OpenAI has no name for (`pause_turn`) stay as they
are.
"""

from __future__ import annotations

from .anthropic_answers import chat_response
from .anthropic_requests import chat_request
from .anthropic_streams import chunk_decoder

__all__ = ["chat_request", "chat_response", "chunk_decoder"]
