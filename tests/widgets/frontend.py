"""A front end that is not there: records what widgets send, and can click, slide, point and acknowledge."""

import comm
from comm.base_comm import BaseComm, CommManager


class FakeComm(BaseComm):
    """Keeps every message instead of sending it."""

    pages: "FakePage | None" = None

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        if self.pages is not None:
            self.pages.receive(self, msg_type, data or {}, buffers or [])


class FakePage:
    """All comms of a test. `auto` acknowledges frames at once, as a page that is fast enough would."""

    def __init__(self, monkeypatch):
        self.messages, self.auto, self.open = [], True, True
        page = self

        class Comm(FakeComm):
            pages = page

        manager = CommManager()
        monkeypatch.setattr(comm, "create_comm", lambda *args, **keys: Comm(*args, **keys))
        monkeypatch.setattr(comm, "get_comm_manager", lambda: manager)

    def receive(self, channel, kind, data, buffers):
        content = data.get("content") or {}
        self.messages.append((channel.comm_id, kind, data, buffers))
        is_frame = data.get("method") == "custom" and content.get("type") == "frame"
        if self.auto and self.open and is_frame:
            self.tell_comm(channel, {"type": "painted", "id": content["id"], "view": "v"})

    def tell_comm(self, channel, content):
        channel.handle_msg({"content": {"data": {"method": "custom", "content": content}}, "buffers": []})

    def tell(self, widget, **content):
        """Say something to a view's kernel side, as its JavaScript would."""
        self.tell_comm(widget.comm, {"view": "v", **content})

    def ready(self, *views):
        for view in views:
            self.tell(view, type="ready")

    def click(self, button):
        self.tell_comm(button.comm, {"event": "click"})

    def slide(self, widget, value):
        """Change a control's value from the page."""
        data = {"method": "update", "state": {"value": value}, "buffer_paths": []}
        widget.comm.handle_msg({"content": {"data": data}, "buffers": []})

    def choose(self, dropdown, label):
        data = {"method": "update", "state": {"index": list(dropdown._options_labels).index(label)}, "buffer_paths": []}
        dropdown.comm.handle_msg({"content": {"data": data}, "buffers": []})

    def sent(self, widget, kind="frame"):
        """(content, buffers) of the custom messages of a kind that a view has sent."""
        return [
            (data["content"], buffers)
            for comm_id, _, data, buffers in list(self.messages)
            if comm_id == widget.comm.comm_id and data.get("method") == "custom" and data["content"].get("type") == kind
        ]
