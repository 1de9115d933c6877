"""`nbllm.set_price`: prices of the user's own, for models that the price table lacks or has wrong.

Checks them, hands them to `costs`, and prices what this kernel's log holds without a price.
"""

from __future__ import annotations

import numbers
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from . import costs, log, notices, tagging
from .exceptions import UsageProblem
from .settings import model_of

if TYPE_CHECKING:
    import sqlalchemy as sa

SECONDS = 10.0
"""How long `set_price` waits for the log; the rows get their price all the same, later."""


def set_price(
    model: str,
    *,
    input: float | None,
    output: float | None = None,
    cache_read: float | None = None,
    cache_write: float | None = None,
) -> None:
    """Set what a model costs, for this kernel, in US dollars for a million tokens, as price lists give it::

        nbllm.set_price("my-model", input=0.5, output=1.5, cache_read=0.05)
        nbllm.set_price("azure/my-deployment", input=2, output=8)   # nowhere else
        nbllm.set_price("my-model", input=None)                     # takes it back

    It goes before the table of genai-prices, and after what a provider itself says that a request cost.
    Requests of this kernel that have no price yet get it at once, later ones as they end (`cost_source` is
    "user"); one that has a price keeps it.

    Args:
        model: The name as a call takes it, or as the answer bears it; with its provider in front the price
            holds for this provider only.
        input: Of the prompt; None takes the model's price back.
        output: Of the answer, reasoning included. Left out for models that give no tokens, such as those of
            embeddings: a request with output tokens has no price then.
        cache_read: Of what came from the provider's cache; default: `input`.
        cache_write: Of what went into it; default: `input`.

    Raises:
        UsageProblem: No name, or a price that is no number from 0 up. Nothing is changed then.
    """
    if not isinstance(model, str) or not model.strip():
        raise UsageProblem(f"model must be a text such as 'my-model' or 'openai/my-model'; got {model!r:.80}")
    name = model_of(model.strip())
    given = {"input": input, "output": output, "cache_read": cache_read, "cache_write": cache_write}
    checked = {which: _checked(which, value) for which, value in given.items() if value is not None}
    price = None
    if (first := checked.get("input")) is not None:
        price = costs.Price(
            first, checked.get("output"), checked.get("cache_read", first), checked.get("cache_write", first)
        )
    elif checked:
        raise UsageProblem(f"the price of {name!r} lacks its input: give input=0 where that is free")
    try:
        log.flush(SECONDS)  # what has ended is priced as it was until now
    except TimeoutError:
        pass
    costs.set_own(name, price)
    if price is not None:
        _fill_in(name, price)


def _checked(which: str, value: Any) -> float:
    is_number = isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool)
    if not (is_number and value == value and 0 <= value < _MOST):  # nan is not itself
        raise UsageProblem(
            f"{which} must be US dollars for a million tokens, from 0 up, such as 0.5; got {value!r:.80}"
        )
    return float(value)


_MOST = 1e9


def _fill_in(model: str, price: costs.Price) -> None:
    """Price the rows that have none, as `costs.Price.usd` does it, in one statement."""
    statement = f"""
        UPDATE requests SET cost_source = 'user', cost_usd = (
            :input * (input_tokens - {_CACHED}) + :output * coalesce(output_tokens, 0)
            + :cache_read * coalesce(cache_read_tokens, 0) + :cache_write * coalesce(cache_write_tokens, 0)
        ) / 1000000
        WHERE kernel_id = :kernel AND cost_usd IS NULL AND input_tokens >= {_CACHED}
        AND (output_tokens IS NULL OR output_tokens <= :most_output)
        AND (:model IN (request_model, response_model)
            OR :model IN (provider || '/' || request_model, provider || '/' || response_model))"""
    values = {
        "input": price.input,
        "output": price.output or 0.0,
        "cache_read": price.cache_read,
        "cache_write": price.cache_write,
        "kernel": tagging.kernel_id(),
        "model": model,
        "most_output": 0 if price.output is None else (1 << 63) - 1,
    }

    def job(connection: sa.Connection) -> None:
        import sqlalchemy as sa

        connection.execute(sa.text(statement), values)

    try:
        log.read_soon(job, SECONDS)
        log.tell_change()
    except Exception as error:
        notices.warn_once(
            f"the price of {model!r} holds from now on; earlier requests stay without: {error!r:.200}"
        )


_CACHED = "(coalesce(cache_read_tokens, 0) + coalesce(cache_write_tokens, 0))"
