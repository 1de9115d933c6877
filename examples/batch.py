"""Ask a model about each line of a file; the answers go into a JSON Lines file as they come.

python examples/batch.py questions.txt answers.jsonl --model demo/fast --at-once 20

Run it again after an interrupt or failures: lines that have their answer are not asked anew. The exit code is
1 where some failed.
"""

import argparse
import asyncio
import json
from pathlib import Path
from typing import TextIO

import nbllm


async def answer(model: str, question: str, file: TextIO) -> bool:
    """Ask, and write the answer; whether there is one."""
    try:
        found = await nbllm.acompletion(model, question)
    except nbllm.APIError as error:
        print(f"{question:.40}: {type(error).__name__}: {error}")
        return False
    row = {"question": question, "answer": found.text, "cost_usd": found.cost_usd}
    print(json.dumps(row), file=file, flush=True)
    return True


async def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--model", default="demo/fast")
    parser.add_argument("--at-once", type=int, default=20)
    args = parser.parse_args()

    known = args.answers.read_text().splitlines() if args.answers.exists() else []
    answered = {json.loads(line)["question"] for line in known}
    asked = dict.fromkeys(filter(None, map(str.strip, args.questions.read_text().splitlines())))
    missing = [question for question in asked if question not in answered]

    nbllm.configure(max_concurrency=args.at_once)
    with args.answers.open("a") as file, nbllm.session(args.questions.stem):
        done = await asyncio.gather(*[answer(args.model, question, file) for question in missing])
    print(f"{sum(done)} answered, {len(done) - sum(done)} failed, {len(answered)} had their answer")
    if done:
        columns = ["requests", "errors", "input_tokens", "output_tokens", "cost_usd", "connections_opened"]
        print(nbllm.sessions()[columns].to_string(index=False))
    return 0 if all(done) else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
