"""What nbllm's trace and log cost, against plain aiohttp with orjson: `python -m benchmarks`."""
