"""The openai SDK over the kernel's HTTP session: `nbllm.bridges.openai.install()`.

Its module-level client (`openai.chat.completions.create`) is among them, and Azure's. Tested with openai 2.54
and 3.54.
"""

from .httpx_clients import Bridge

bridge = Bridge("openai", "openai._base_client", ("SyncHttpxClientWrapper", "AsyncHttpxClientWrapper"))
install, uninstall = bridge.install, bridge.uninstall
