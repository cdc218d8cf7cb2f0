"""The explorer in a Chromium page without JupyterLab: its messages are carried by hand, which takes seconds less."""

import base64
import json
import time

import comm
from comm.base_comm import BaseComm, CommManager
from waiting import painted

from natgrad_lab.explorer.page import SCRIPTS, asset

MANAGER = CommManager()
PAGE = """<!doctype html><meta charset="utf-8"><style>body{margin:8px;background:white}</style><div id="here"></div>
<script>
window.outbox = []; window.handlers = [];
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
window.deliver = (messages) => messages.forEach(([content, buffers]) =>
  window.handlers.forEach((handler) => handler(content, buffers.map(bytes))));
const values = { state: STATE };
window.model = { send: (message) => window.outbox.push(message), get: (name) => values[name],
  set: (name, value) => (values[name] = value),
  save_changes: () => window.outbox.push({ type: "state", state: values.state }),
  on: (_, handler) => window.handlers.push(handler), off() {} };
const here = document.getElementById("here");
import("data:text/javascript;base64,SCRIPT").then((made) => made.default.render({ model, el: here }));
</script>"""


class Bare:
    """A widget and a page that shows it."""

    def __init__(self, monkeypatch, chromium, make, width=1280, height=1000):
        """`make` returns the widget."""
        self.sent = []
        outer = self

        class Comm(BaseComm):
            def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
                content = (data or {}).get("content")
                if content:
                    outer.sent.append((content, [bytes(buffer) for buffer in buffers or []]))

        monkeypatch.setattr(comm, "create_comm", lambda *args, **keys: Comm(*args, **keys))
        monkeypatch.setattr(comm, "get_comm_manager", lambda: MANAGER)
        self.view, self.complaints = make(), []
        script = base64.b64encode(asset(*SCRIPTS, "widget.js").encode()).decode()
        self.page = chromium.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(60_000)
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.set_content(PAGE.replace("STATE", json.dumps(self.view.state)).replace("SCRIPT", script))
        self.page.add_style_tag(content=asset("explorer.css"))

    def pump(self):
        """Carry what waits, both ways."""
        for message in self.page.evaluate("() => window.outbox.splice(0)"):
            if message.get("type") == "state":
                self.view.state = message["state"]
            self.view.comm.handle_msg({"content": {"data": {"method": "custom", "content": message}}, "buffers": []})
        waiting, self.sent = self.sent, []
        if waiting:
            packed = [[content, [base64.b64encode(buffer).decode() for buffer in buffers]] for content, buffers in waiting]
            self.page.evaluate("(messages) => window.deliver(messages)", packed)

    def until(self, test, seconds=60.0):
        """Carry messages until the page says yes, and then until nothing is under way."""
        end = time.monotonic() + seconds
        while True:
            self.pump()
            self.page.wait_for_timeout(20)
            if self.page.evaluate(test) and not self.sent:
                return
            assert time.monotonic() < end, f"{test} in vain; {self.problem()} {self.complaints}"

    def settle(self):
        """Until every tile of the view is painted."""
        for _ in range(4):
            self.pump()
            painted(self.page)
            self.page.wait_for_timeout(40)
        self.until("""() => { const c = document.querySelector('.ngx-pixels');
            return c && Number(c.dataset.drawn) > 1 && c.dataset.missing === '0'; }""")

    def problem(self):
        """The line of complaints."""
        return self.page.locator(".ngx-problem").inner_text()

    def close(self):
        """Both."""
        self.view.close()
        self.page.close()
