"""The anthropic SDK over the kernel's HTTP session: `nbllm.bridges.anthropic.install()`.

Tested with anthropic 2.12.
"""

from .httpx_clients import Bridge

bridge = Bridge("anthropic", "anthropic._base_client", ("SyncHttpxClientWrapper", "AsyncHttpxClientWrapper"))
install, uninstall = bridge.install, bridge.uninstall
