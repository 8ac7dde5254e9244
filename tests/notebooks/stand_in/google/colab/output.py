"""What anywidget asks of Colab, with Colab's own names."""

from types import SimpleNamespace

enabled = False
_widgets = SimpleNamespace(_installed_url=None)


def enable_custom_widget_manager() -> None:
    global enabled
    enabled = True
    _widgets._installed_url = "https://ssl.gstatic.com/colaboratory-static/widgets/manager.min.js"
