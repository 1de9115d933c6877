"""LangChain's OpenAI models over the kernel's HTTP session: `nbllm.bridges.langchain.install()`.

`ChatOpenAI` brings clients of its own to the openai SDK; `AzureChatOpenAI` and `OpenAIEmbeddings` take the
SDK's, so that `bridges.openai` goes along. Tested with langchain-openai 1.7.
"""

from . import openai
from .httpx_clients import Bridge

bridge = Bridge(
    "langchain-openai",
    "langchain_openai.chat_models._client_utils",
    ("_SyncHttpxClientWrapper", "_AsyncHttpxClientWrapper"),
)


def install() -> None:
    """Have LangChain's clients of OpenAI's API, and the openai SDK, send over the kernel's HTTP session.

    Raises:
        UsageProblem: langchain-openai is not installed, or this version of it can't be reached.
    """
    bridge.install()
    openai.install()


def uninstall() -> None:
    """Take `install` back."""
    bridge.uninstall()
    openai.uninstall()
