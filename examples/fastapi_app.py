"""A web app: every visitor's question goes over one connection pool, and is a row in the log.

pip install fastapi uvicorn
uvicorn --app-dir examples fastapi_app:app

curl http://127.0.0.1:8000/ask -H 'Content-Type: application/json' -d '{"text": "Hello", "session": "review"}'
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

import nbllm

MODEL = os.environ.get("NBLLM_MODEL", "demo/small")
app = FastAPI()


class Question(BaseModel):
    text: str
    session: str | None = None


@app.post("/ask")
async def ask(question: Question) -> dict[str, Any]:
    """The whole answer, what it cost, and the id of its row."""
    try:
        answer = await nbllm.acompletion(MODEL, question.text, session_id=question.session)
    except nbllm.APIError as error:
        raise _told(error) from error
    return {"text": answer.text, "cost_usd": answer.cost_usd, "request_id": answer.request.request_id}


@app.post("/stream")
async def stream(question: Question) -> StreamingResponse:
    """The answer as it comes. A visitor who goes away ends the request to the model too."""
    try:
        chunks = await nbllm.acompletion(MODEL, question.text, session_id=question.session, stream=True)
    except nbllm.APIError as error:
        raise _told(error) from error

    async def text() -> AsyncIterator[str]:
        async with chunks:
            async for chunk in chunks:
                if chunk.choices:
                    yield chunk.choices[0].delta.content or ""

    return StreamingResponse(text(), media_type="text/plain; charset=utf-8")


@app.get("/sessions")
def sessions() -> Any:
    """What this process has asked, by session. Not async: the log is read in a thread of FastAPI's."""
    columns = ["session_id", "requests", "errors", "output_tokens", "cost_usd", "connections_opened"]
    return json.loads(nbllm.sessions()[columns].to_json(orient="records"))


def _told(error: nbllm.APIError) -> HTTPException:
    """Too many requests are the visitor's to repeat; all else is a fault behind this server."""
    if isinstance(error, nbllm.RateLimitError):
        return HTTPException(429, error.message, {"Retry-After": str(round(error.retry_after or 1))})
    return HTTPException(502, error.message)
