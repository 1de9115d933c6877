"""HTTP servers that nbllm brings along: the demo model server."""
