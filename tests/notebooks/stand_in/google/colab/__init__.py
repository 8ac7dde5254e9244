"""A stand-in for google.colab that keeps Colab's rules, and fails whoever breaks one.

No updates of views from other threads (colabtools #3373), a view in one output only, for each
output is its own frame (#6), no message of 1 MB or more (lonboard #514).
"""

import threading

from google.colab import output  # noqa: F401


class RuleBroken(RuntimeError):
    pass


_shown: set[str] = set()
_plain: set[str] = set()  # views of Jupyter's own widgets, such as a bar: Colab has them


def keep_the_rules(kernel) -> None:
    """Watches everything that the kernel publishes from now on."""
    send = kernel.session.send

    def watched(stream, msg_or_type, content=None, *args, **kwargs):
        kind = msg_or_type if isinstance(msg_or_type, str) else msg_or_type["msg_type"]
        body = content if isinstance(msg_or_type, str) else msg_or_type["content"]
        if kind in (
            "comm_open",
            "comm_msg",
            "display_data",
            "update_display_data",
            "execute_result",
        ):
            check(kind, body or {}, kwargs.get("buffers") or (args[2] if len(args) > 2 else None))
        return send(stream, msg_or_type, content, *args, **kwargs)

    kernel.session.send = watched
    shell = kernel.shell  # huggingface_hub looks at its name to know that it is on Colab
    named = {"__module__": "google.colab._shell"}
    shell.__class__ = type("Shell", (type(shell),), named)


def check(kind: str, content: dict, buffers) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuleBroken(f"{kind} from thread {threading.current_thread().name}: Colab drops it")
    size = len(repr(content)) + sum(memoryview(buffer).nbytes for buffer in buffers or ())
    if size >= 1_000_000:
        raise RuleBroken(f"{kind} of {size} bytes: Colab drops the connection")
    if kind == "comm_open":
        state = content.get("data", {}).get("state", {})
        if state.get("_model_module") != "anywidget":
            _plain.add(content["comm_id"])
    view = content.get("data", {}).get("application/vnd.jupyter.widget-view+json")
    if isinstance(view, dict):
        if not output.enabled and view["model_id"] not in _plain:
            raise RuleBroken("a custom widget is shown before enable_custom_widget_manager()")
        if view["model_id"] in _shown:
            raise RuleBroken("a view is shown in two outputs, which are two frames on Colab")
        _shown.add(view["model_id"])
