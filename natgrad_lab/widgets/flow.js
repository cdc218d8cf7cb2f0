// The page's half of the protocol of flow.py: take the newest message, paint it, acknowledge it; say when we come and go.

function afterPaint(paint) {
  // Hidden tabs have no animation frames; without the timer their acknowledgements would stop.
  let done = false;
  const once = () => {
    if (!done) {
      done = true;
      paint();
    }
  };
  requestAnimationFrame(once);
  setTimeout(once, document.hidden ? 0 : 250);
}

function connect(model, kinds) {
  const view = Math.random().toString(36).slice(2);
  const send = (message) => model.send({ ...message, view });
  let next = null;
  let closed = false;
  const flow = { paint: null, send };
  const acknowledge = (header) => send({ type: "painted", id: header.id });

  async function paintNext() {
    const [header, buffers] = next;
    next = null;
    try {
      if (!closed) await flow.paint(header, buffers);
    } finally {
      if (!closed) acknowledge(header);
      if (next) afterPaint(paintNext);
      else flow.busy = false;
    }
  }

  function receive(message, buffers) {
    if (message.type !== "frame") return kinds[message.type]?.(message, buffers);
    if (next) acknowledge(next[0]); // overtaken before it was painted
    next = [message, buffers];
    if (!flow.busy) {
      flow.busy = true;
      afterPaint(paintNext);
    }
  }

  const ready = () => document.hidden || send({ type: "ready" });
  flow.start = () => {
    model.on("msg:custom", receive);
    document.addEventListener("visibilitychange", ready);
    send({ type: "ready" });
  };
  flow.stop = () => {
    closed = true;
    model.off("msg:custom", receive);
    document.removeEventListener("visibilitychange", ready);
    send({ type: "gone" });
  };
  return flow;
}

function element(parent, tag, className) {
  const node = document.createElement(tag);
  node.className = className;
  parent.appendChild(node);
  return node;
}
