"""Many questions at once, over one connection pool; one of them fails, and the others don't.

python examples/concurrent_questions.py [MODEL]
"""

import asyncio
import sys

import nbllm

COUNTRIES = ["Chad", "Chile", "China", "Cuba", "Cyprus", "Peru", "Qatar", "Spain", "Togo", "Yemen"]


async def ask(model: str, question: str) -> str:
    try:
        return (await nbllm.acompletion(model, question)).text
    except nbllm.APIError as error:
        return f"{type(error).__name__}: {error}"


async def main(model: str = "demo/small") -> None:
    nbllm.configure(max_concurrency=5)  # the others wait in a queue: `queued_ms` of their rows
    questions = [(model, f"What is the capital of {country}?") for country in COUNTRIES]
    # A demo model that always fails; its two further attempts are rows too.
    questions.append(("demo/error", "And the capital of Atlantis?"))
    with nbllm.session("capitals"):
        answers = await asyncio.gather(*[ask(*question) for question in questions])
    for (_, question), answer in zip(questions, answers, strict=True):
        print(f"{question:40}", " ".join(answer.split())[:60])
    columns = ["session_id", "requests", "errors", "input_tokens", "output_tokens", "connections_opened"]
    print(nbllm.sessions()[columns].to_string(index=False))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
