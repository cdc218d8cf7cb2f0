"""What the two views share: their files, and the kernel's half of the talk with the page."""

from pathlib import Path

import anywidget
import traitlets

from natgrad_lab.widgets.flow import FrameFlow

_HERE = Path(__file__).parent


def source(*names: str) -> str:
    """Join JavaScript or CSS files of this folder; anywidget takes one text."""
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)


class FlowView(anywidget.AnyWidget):
    """A view fed by binary messages with back-pressure (`flow.py`). Subclasses answer other messages in `answer`."""

    _css = source("widgets.css")
    alt = traitlets.Unicode("").tag(sync=True)

    def __init__(self, **traits):
        """Set up the flow first: messages may arrive on another thread as soon as the widget exists."""
        self._frames = FrameFlow(self._to_page)
        self._ready_listeners = []
        super().__init__(**traits)
        self.on_msg(self._from_page)

    @property
    def is_watched(self) -> bool:
        """Whether some page shows this view and keeps up."""
        return self._frames.is_watched()

    def on_ready(self, listener) -> None:
        """Call `listener()` whenever a page connects or comes back."""
        self._ready_listeners.append(listener)

    def answer(self, message: dict) -> None:
        """Answer a message that is not about frames."""

    def greet(self) -> None:
        """Send what a page needs before its first frame."""

    def _to_page(self, header: dict, buffers: list) -> None:
        if self.comm is not None:  # closed
            self.send(header, buffers)

    def _from_page(self, _widget, message, _buffers) -> None:
        kind, view = message.get("type"), str(message.get("view"))
        if kind == "painted":
            self._frames.acknowledge(view, int(message["id"]))
        elif kind == "ready":
            self.greet()
            self._frames.ready(view)
            for listener in self._ready_listeners:
                listener()
        elif kind == "gone":
            self._frames.gone(view)
        else:
            self.answer(message)
