"""Tab in the magics: what is offered where; beside IPython's own matchers in a shell; in a real kernel."""

from __future__ import annotations

import threading
import types
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import nbllm
from nbllm import completer, log, magics, settings, tab, tagging
from nbllm.arguments import OPTIONS
from nbllm.commands import COMMANDS
from nbllm.completer import completions
from nbllm.providers import PROVIDERS
from nbllm.servers.demo import DemoServer
from nbllm.servers.demo_chat import MODELS as DEMO_MODELS
from tests.kernels import TIMEOUT, Kernel, every_python


def offered(text: str, **namespace: Any) -> list[str]:
    """What Tab offers after this text."""
    found = completions(text, namespace)
    if found is None:
        return []
    assert text.endswith(found.fragment)
    return [suggestion.text for suggestion in found.suggestions]


def fragment(text: str, **namespace: Any) -> str:
    found = completions(text, namespace)
    assert found is not None
    return found.fragment


# -- the magic's line ----------------------------------------------------------------------------------


@pytest.mark.parametrize("magic", ["%%llm", "%llm", "%%nbllm"])
def test_every_flag_is_offered(magic: str) -> None:
    found = completions(f"{magic} -", {})
    assert found is not None
    assert {flag.text for flag in found.suggestions} == {flag for option in OPTIONS for flag in option.flags}
    assert {flag.kind for flag in found.suggestions} == {
        "option"
    }  # one word: front ends have a narrow column


def test_the_rest_of_a_flag() -> None:
    assert offered("%%llm gpt-4o --no-") == ["--no-history", "--no-stream"]
    assert fragment("%%llm gpt-4o --no-") == "--no-"
    assert offered("%%llm --nothing-like-it") == []


def test_models_stand_after_the_magic_and_after_their_flag() -> None:
    for text in ("%%llm ", "%%nbllm ", "%%llm -m ", "%%llm --model=", "%llm -m ", '%%llm "', "%nbllm model "):
        models = offered(text)
        assert {"gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-flash", "demo/small"} <= set(models), text
        assert {f"{provider}/" for provider in PROVIDERS} <= set(models)
        assert len(models) == len(set(models))


def test_several_models_may_stand_there() -> None:
    assert "claude-sonnet-4-5" in offered("%%llm gpt-4o -s review --new claude-sonnet")


def test_the_whole_name_of_a_model_is_replaced() -> None:
    for name in ("gpt-4.", "demo/", "groq/openai/gpt-", "openrouter/meta-llama/llama-3.3-70b-instruct:"):
        assert fragment(f"%%llm {name}") == name
        assert all(model.startswith(name) for model in offered(f"%%llm {name}"))
    assert {f"demo/{name}" for name in DEMO_MODELS} <= set(offered("%%llm demo/"))


def test_a_providers_models_come_once_its_prefix_is_written() -> None:
    assert offered("%%llm groq") == ["groq/"]
    assert "groq/llama-3.3-70b-versatile" in offered("%%llm groq/")


def test_a_model_is_found_without_its_prefix() -> None:
    assert "groq/llama-3.3-70b-versatile" in offered("%%llm llama-3.3-70b-versa")


def test_only_models_that_can_be_asked_so_are_offered() -> None:
    models = set(offered("%%llm "))
    assert not {"text-embedding-3-small", "whisper-1", "tts-1", "gpt-image-1", "ada"} & models
    assert not [model for model in offered("%%llm gemini/") if "claude" in model]
    assert all("/" in model.removeprefix("openrouter/") for model in offered("%%llm openrouter/")[1:])


def test_aliases_come_first() -> None:
    settings.configure(aliases={"fast": "gpt-4o-mini"})
    found = completions("%%llm ", {})
    assert found is not None
    assert found.suggestions[0] == ("fast", "alias")


def test_models_and_sessions_of_this_kernel_are_offered(demo: DemoServer) -> None:
    nbllm.completion("demo/fast", "Hi", session_id="review one")
    log.flush()
    assert offered("%%llm ")[0] == "demo/fast"
    assert '"review one"' in offered("%%llm -s ")
    assert offered("%%llm -s 'rev") == ["review one"]
    assert fragment("%%llm -s 'rev") == "rev"


def test_a_tab_makes_no_log(log_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log._state, "log", log.Log())
    assert offered("%%llm -s ") == [tagging.current_session()]
    assert not log_path.exists()


def test_a_log_that_is_busy_is_not_waited_for(demo: DemoServer) -> None:
    nbllm.completion("demo/fast", "Hi", session_id="review")
    log.flush()
    done = threading.Event()
    busy = threading.Thread(target=log.read, args=(lambda connection: done.wait(10),))
    busy.start()
    try:
        assert offered("%%llm -s ") == [tagging.current_session()]
    finally:
        done.set()
        busy.join()
    assert "review" in offered("%%llm -s ")


@pytest.mark.parametrize(
    "text",
    ["%%llm -s ", "%%llm --session=", "%%session ", "%session ", "%nbllm session ", "%nbllm reset ",
     "%nbllm requests -s ", "x = 1\n%nbllm session "],
)  # fmt: skip
def test_sessions(text: str) -> None:
    tagging.set_session("review")
    assert offered(text) == ["review", tagging.default_session()]


def test_a_session_has_one_name() -> None:
    assert offered("%%session review ") == []


def test_the_forms_of_an_answer() -> None:
    for text in ("%%llm -f ", "%%llm gpt-4o --format=", "%llm -f "):
        assert offered(text) == list(settings.CHOICES["format"])
    assert offered("%%llm -f j") == ["json"]


@pytest.mark.parametrize("flag", ["-o", "--output", "-i", "--schema"])
def test_variables(flag: str) -> None:
    names = {"answer": 1, "picture": b"", "_hidden": 1, "In": [], "get_ipython": print}
    assert offered(f"%%llm {flag} ", **names) == ["answer", "picture"]
    assert offered(f"%%llm {flag} p", **names) == ["picture"]


def test_a_picture_may_also_be_a_file() -> None:
    pictures, outputs = completions("%%llm -i ", {"a": 1}), completions("%%llm -o ", {"a": 1})
    assert pictures is not None
    assert outputs is not None
    assert (pictures.or_file, outputs.or_file) == (True, False)


def test_parameters() -> None:
    assert {"temperature=", "top_p=", "max_tokens=", "seed=", "tools="} <= set(offered("%%llm -p "))
    assert offered("%%llm -p temp") == ["temperature="]
    assert offered("%%llm -p temperature=") == []


def test_commands_and_what_they_take() -> None:
    assert offered("%nbllm ") == list(COMMANDS)
    assert offered("%nbllm conn") == ["connections"]
    assert "--errors" in offered("%nbllm requests --")
    assert offered("%nbllm connections -") == ["-k"]
    assert "groq" in offered("%nbllm key g")
    assert "gpt-4o-mini" in offered("%nbllm alias fast=gpt-4o-")
    assert fragment("%nbllm alias fast=gpt-4o-") == "gpt-4o-"


@pytest.mark.parametrize(
    "text",
    ["", "%", "%%llm", "%llm", "llm ", "%%bash\n-", "%%bash ", "x = %%llm", "%llm Wh", "%%llm gpt-4o\n-",
     "%%llm\ngpt", "%%llm --base-url ", "%%llm --context ", "%llm -s a What -"],
)  # fmt: skip
def test_elsewhere_nothing_is_offered(text: str) -> None:
    assert offered(text, x=1) == []


def test_a_magic_of_somebody_else_is_left_alone() -> None:
    assert completions("%%llm ", {}, magics={"%%nbllm"}) is None
    assert completions("%%llm\n{{", {"x": 1}, magics={"%%nbllm"}) is None
    assert completions("%%nbllm ", {}, magics={"%%nbllm"}) is not None


def test_a_line_magic_below_other_code() -> None:
    assert offered("import nbllm\n\nfound = %nbllm conn") == ["connections"]
    assert offered("%%time\n%nbllm conn") == ["connections"]


# -- {{ ------------------------------------------------------------------------------------------------


class Loud:
    """Whatever is run here is an error of the test."""

    __slots__ = ("__dict__", "slot")

    kind = types.SimpleNamespace(inner=1)

    def __init__(self) -> None:
        self.slot = types.SimpleNamespace(deep=1)
        self.plain = types.SimpleNamespace(deeper=1)

    @property
    def costly(self) -> Any:
        raise AssertionError("a property was run")

    def method(self) -> None:
        raise AssertionError("a method was run")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError("__getattr__ was run")

    def __dir__(self) -> Any:
        raise AssertionError("__dir__ was run")


@pytest.mark.parametrize(
    "text",
    ["%%llm\nAbout {{", "%%nbllm gpt-4o\n\nOne {{name}} two {{", "%llm About {{", '%%llm --system "About {{',
     "%llm -s a --system={{", "%%llm\n{{{", "%%llm\n{{f(", "\n  %%llm\n{{1 + "],
)  # fmt: skip
def test_variables_in_a_prompt(text: str) -> None:
    names = {"name": 1, "other": 2, "_hidden": 3, "In": [], "Out": {}, "exit": 1, "get_ipython": print}
    assert offered(text, **names) == ["name", "other"]
    assert fragment(text, **names) == ""


def test_what_is_typed_is_found() -> None:
    names = {"lengths": 1, "_hidden": 2, "Out": {}}
    assert offered("%%llm\n{{_", **names) == ["_hidden"]
    assert offered("%%llm\n{{Ou", **names) == ["Out"]
    assert offered("%%llm\n{{le", **names) == ["lengths", "len"]


@pytest.mark.parametrize(
    "prompt",
    ["name", "{name", "{{name}} na", "\\{{na", "{{name\nna", "{{'na", "{{f().na", "{{rows[0].na", "{{1.na"],
)
def test_elsewhere_in_a_prompt_nothing_is_offered(prompt: str) -> None:
    assert offered(f"%%llm\n{prompt}", name=1, rows=[1]) == []


def test_attributes_without_running_anything() -> None:
    loud = Loud()
    assert offered("%%llm\n{{loud.", loud=loud) == ["costly", "kind", "method", "plain", "slot"]
    assert offered("%%llm\n{{loud.__in", loud=loud) == ["__init__", "__init_subclass__"]
    assert offered("%%llm\n{{loud.plain.", loud=loud) == ["deeper"]
    assert offered("%%llm\n{{loud.slot.de", loud=loud) == ["deep"]
    assert offered("%%llm\n{{loud.kind.", loud=loud) == ["inner"]
    for chain in ("loud.costly.", "loud.method.", "loud.missing.", "Loud.slot.", "missing."):
        assert offered(f"%%llm\n{{{{{chain}", loud=loud, Loud=Loud) == []


def test_attributes_of_modules_and_classes() -> None:
    assert "flush" in offered("%%llm\n{{log.", log=log)
    assert offered("%%llm\n{{log.Log.read", log=log) == ["read"]
    assert offered("%%llm\n{{Loud.met", Loud=Loud) == ["method"]


def test_columns_and_keys() -> None:
    frame = pd.DataFrame({"age": [1], "with space": [2], 3: [4], 'a"b': [5]})
    box = types.SimpleNamespace(frame=frame)
    assert offered('%%llm\n{{df["', df=frame) == ["age", "with space"]
    assert offered("%%llm\n{{df['with s", df=frame) == ["with space"]
    assert fragment("%%llm\n{{df['with s", df=frame) == "with s"
    assert offered("%%llm\n{{box.frame['a", box=box) == ["age", 'a"b']
    assert offered("%%llm\n{{df.ag", df=frame) == ["age", "agg", "aggregate"]
    assert offered('%%llm\n{{d["', d=defaultdict(list, x=[1])) == ["x"]
    assert offered('%%llm\n{{f("', f=frame) == []
    assert offered('%%llm --system "{{df["ag', df=frame) == ["age"]


def test_a_mapping_that_is_no_dict_is_not_asked() -> None:
    class Rows:
        def keys(self) -> Any:
            raise AssertionError("keys() was run")

    assert offered('%%llm\n{{rows["', rows=Rows()) == []


# -- in a shell ----------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["jedi", "no jedi"])
def shell(request: pytest.FixtureRequest) -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=config)
    made.Completer.use_jedi = request.param
    magics.register(made)
    yield made
    magics.unregister(made)
    made.history_manager.end_session()
    InteractiveShell.clear_instance()


def press_tab(shell: InteractiveShell, cell: str) -> list[str]:
    """The cells that Tab offers; `|` is the cursor."""
    before, after = cell.split("|")
    with provisionalcompleter():
        found = list(shell.Completer.completions(before + after, len(before)))
    return [before[: one.start] + one.text + after for one in found]


def test_only_ours_stand_where_they_are_right(shell: InteractiveShell) -> None:
    shell.user_ns |= {"gpt_of_mine": 1, "data": {"first": 1}}
    assert press_tab(shell, "%%llm gpt-4o-m|\nHi") == [
        "%%llm gpt-4o-mini\nHi",
        "%%llm gpt-4o-mini-audio-preview\nHi",
    ]
    assert press_tab(shell, "%%llm gpt-4o --no-h|\nHi") == ["%%llm gpt-4o --no-history\nHi"]
    assert press_tab(shell, "%%llm -p temper|\nHi") == ["%%llm -p temperature=\nHi"]
    assert press_tab(shell, "%%llm\nOf {{dat|}} and so on") == ["%%llm\nOf {{data}} and so on"]
    assert press_tab(shell, '%%llm\nOf {{data["|"]}}') == ['%%llm\nOf {{data["first"]}}']
    assert press_tab(shell, "1 + 1\n%nbllm conn|") == ["1 + 1\n%nbllm connections"]


def test_python_is_left_to_ipython(shell: InteractiveShell) -> None:
    shell.user_ns["something"] = 1
    assert "somethin = something" in press_tab(shell, "somethin = someth|")
    assert "%%llm" in press_tab(shell, "%%ll|")
    assert "%%time\nsomething" in press_tab(shell, "%%time\nsometh|")


def test_files_are_offered_beside_pictures(
    shell: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plot.png").touch()
    monkeypatch.chdir(tmp_path)
    shell.user_ns["plotted"] = 1
    assert set(press_tab(shell, "%%llm -i plot|\nHi")) == {"%%llm -i plotted\nHi", "%%llm -i plot.png\nHi"}


def test_installing_again_gives_no_doubles(shell: InteractiveShell) -> None:
    before = len(shell.Completer.custom_matchers)
    tab.install(shell)
    assert len(shell.Completer.custom_matchers) == before
    assert press_tab(shell, "%%llm --dry|") == ["%%llm --dry-run"]
    tab.uninstall(shell)
    assert len(shell.Completer.custom_matchers) == before - 1
    assert press_tab(shell, "%%llm --dry|") == []


def test_an_llm_of_somebody_else_is_left_to_it(shell: InteractiveShell) -> None:
    shell.register_magic_function(lambda line, cell: None, "cell", "llm")
    assert press_tab(shell, "%%llm --dry|") == []
    assert press_tab(shell, "%%nbllm --dry|") == ["%%nbllm --dry-run"]


def test_a_failure_leaves_the_others_alone(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(completer, "completions", lambda *args, **kwargs: 1 / 0)
    shell.user_ns["something"] = 1
    assert press_tab(shell, "someth|") == ["something"]
    assert capsys.readouterr() == ("", "")


# -- in a kernel ---------------------------------------------------------------------------------------


class Typing(Kernel):
    """A kernel that is asked for completions as a front end asks."""

    def complete(self, cell: str) -> list[str]:
        """The cells that Tab offers; `|` is the cursor."""
        before, after = cell.split("|")
        request = self._client.complete(before + after, len(before))
        while True:
            reply = self._client.get_shell_msg(timeout=TIMEOUT)
            if reply["parent_header"]["msg_id"] == request:
                break
        found = reply["content"]
        assert found["status"] == "ok"
        start, end = found["cursor_start"], found["cursor_end"]
        assert [one["text"] for one in found["metadata"]["_jupyter_types_experimental"]] == found["matches"]
        return [(before + after)[:start] + match + (before + after)[end:] for match in found["matches"]]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, python: str) -> Iterator[Typing]:
    with DemoServer() as demo, Typing(tmp_path_factory.mktemp("kernel"), demo, python) as started:
        started.run("%load_ext nbllm\nfrom nbllm import tab\ntab.install(get_ipython())").ok()
        yield started


@every_python
def test_a_front_end_gets_what_replaces_the_fragment(kernel: Typing) -> None:
    kernel.run("import pandas as pd\ndf = pd.DataFrame({'größe 🙂': [1], 'age': [2]})").ok()
    kernel.run("%reload_ext nbllm").ok()
    assert kernel.complete("%%llm demo/sm|\nHi") == ["%%llm demo/small\nHi"]
    assert kernel.complete("%%llm demo/fast --dry| -s x\nHi") == ["%%llm demo/fast --dry-run -s x\nHi"]
    assert kernel.complete("%%llm claude-opus-4-1|\nHi") == ["%%llm claude-opus-4-1\nHi"]
    assert kernel.complete("%%llm\n🙂 {{df['gr|']}}!") == ["%%llm\n🙂 {{df['größe 🙂']}}!"]
    assert "%%llm\n{{df.age}}" in kernel.complete("%%llm\n{{df.a|}}")
    assert "%%llm\n{{df.größe}}" not in kernel.complete("%%llm\n{{df.|}}")


@every_python
def test_sessions_of_earlier_cells(kernel: Typing) -> None:
    kernel.run("import nbllm\nnbllm.completion('demo/fast', 'Hi', session_id='earlier-cell')").ok()
    assert kernel.complete("%%llm -s earl|\nHi") == ["%%llm -s earlier-cell\nHi"]
    assert kernel.complete("%%session earl|\n1") == ["%%session earlier-cell\n1"]


def test_a_json_value_is_one_word() -> None:
    assert offered('%%llm -p stop=["a b", "c"] --dry') == ["--dry-run"]
    assert offered('%llm -p stop=["a b", "c"] --dry') == ["--dry-run"]
