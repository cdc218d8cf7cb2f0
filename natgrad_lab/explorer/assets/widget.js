// The kernel's tiles: asked for as the view moves, taken whenever they come; those of an older matrix are dropped.
export default {
  render({ model, el }) {
    const view = Math.random().toString(36).slice(2);
    const send = (message) => model.send({ ...message, view });
    const root = document.createElement("div");
    el.appendChild(root);
    const slider = document.createElement("label");
    slider.className = "ngx-time";
    slider.hidden = true;
    const knob = Object.assign(document.createElement("input"), { type: "range", min: 0, step: 1 });
    const told = document.createElement("span");
    slider.append("time ", knob, told);
    el.appendChild(slider);
    let viewer = null;
    let epoch = -1;
    let number = 0;
    let saving = 0;

    function begin(message, buffers) {
      epoch = message.epoch;
      if (viewer) {
        viewer.rearrange(message.about, placesOf(buffers[message.colours.length]));
        return viewer.renew(epoch, message.about.limits);
      }
      const bytes = (buffer) => new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
      const places = placesOf(buffers[message.colours.length]);
      const tables = Object.fromEntries(message.colours.map((name, k) => [name, colourTable(bytes(buffers[k]))]));
      viewer = createViewer(root, { ...message.about, epoch, places }, tables, {
        request: (source, reduce, level, tiles, all) =>
          send({ type: "tiles", number: ++number, epoch, source, reduce, level, tiles, all }),
        arrange: (change) => send({ type: "arrange", ...change }),
        analyse: () => send({ type: "analysis" }),
        save: (region) => send({ type: "region", ...region }),
        painted: (which) => send({ type: "painted", epoch: which }),
        moved(state) {
          clearTimeout(saving);
          saving = setTimeout(() => {
            model.set("state", state);
            model.save_changes();
          }, 250);
        },
      });
      viewer.show(model.get("state"));
      root.dataset.ready = "1";
    }

    const placesOf = (buffer) => (buffer ? new Int32Array(buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength)) : null);

    function take(message, buffers) {
      message.tiles.forEach(({ source, reduce, level, row, column, rows, columns }, k) => {
        const [buffer, start] = [buffers[k].buffer, buffers[k].byteOffset];
        const bytes = buffer.slice(start, start + buffers[k].byteLength); // aligned for floats
        viewer.receive(source, reduce, level, row, column, rows, columns, new Float32Array(bytes));
      });
      root.dataset.tiles = Number(root.dataset.tiles || 0) + message.tiles.length;
    }

    const kinds = {
      about: begin,
      tiles(message, buffers) {
        if (!viewer || message.epoch !== epoch) return;
        viewer.limit(message.limits);
        take(message, buffers);
      },
      frame(message, buffers) {
        if (!viewer || message.epoch < epoch) return;
        epoch = message.epoch;
        if (message.about) viewer.rearrange(message.about, placesOf(buffers[message.tiles.length]));
        viewer.renew(epoch, message.limits);
        take(message, buffers);
      },
      arranged: (message) => viewer?.arranged(message.arrangement),
      analysis(message) {
        viewer?.analysed(message.analysis);
        root.dataset.analysed = message.epoch;
      },
      region: (message, buffers) => saveAs(new Blob([buffers[0]]), "fisher.npz"),
      problem: (message) => viewer?.complain(message.text, message.dear),
      state: (message) => viewer?.show(message.state),
      jump: (message) => viewer?.jump(message.text),
      times(message) {
        slider.hidden = message.count < 2;
        Object.assign(knob, { max: message.count - 1, value: message.at });
        told.textContent = ` ${message.text}`;
        root.dataset.time = message.text;
      },
    };
    const receive = (message, buffers) => kinds[message.type]?.(message, buffers);
    knob.addEventListener("input", () => send({ type: "time", at: Number(knob.value) }));
    model.on("msg:custom", receive);
    send({ type: "ready" });
    return () => {
      model.off("msg:custom", receive);
      viewer?.close();
      send({ type: "gone" });
    };
  },
};
