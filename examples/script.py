"""A script: two questions in one session, and what they took.

python examples/script.py [MODEL]
"""

import sys

import nbllm


def main(model: str = "demo/small") -> None:
    with nbllm.session("script"):
        first = nbllm.completion(model, "What is a connection pool?")
        print(first.text, end="\n\n")
        second = nbllm.completion(model, f"Say this in one sentence: {first.text}")
        print(second.text, end="\n\n")
    # The second request goes over the connection of the first: synchronous calls share one pool.
    print(nbllm.styled(nbllm.requests(session="script")))


if __name__ == "__main__":
    main(*sys.argv[1:])
