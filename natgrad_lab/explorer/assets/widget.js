const ANSWER_EVERY = 400; // ms
const MOST_AHEAD = 8; // frames on their way

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
    let [saving, resting, newest, took, receivedAt] = [0, 0, null, 0, 0];

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
        request(wanted, shown) {
          const plain = (places) => places.map(({ source, reduce, level, i, j }) => [source, reduce, level, i, j]);
          send({ type: "tiles", epoch, wanted: plain(wanted), shown: shown && (shown.length === wanted.length || plain(shown)) });
        },
        arrange: (change) => send({ type: "arrange", ...change }),
        analyse: () => send({ type: "analysis" }),
        save: (region) => send({ type: "region", ...region }),
        painted,
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

    // All tiles of a message are one buffer, in the order of the list; of two that mirror each other one is sent.
    function take({ tiles }, [{ buffer, byteOffset, byteLength }]) {
      const isAligned = byteOffset % 4 === 0;
      const values = isAligned
        ? new Float32Array(buffer, byteOffset, byteLength / 4)
        : new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));
      let start = 0;
      for (const [source, reduce, level, i, j, rows, columns, isBoth] of tiles) {
        const own = values.subarray(start, start + rows * columns);
        viewer.receive({ source, reduce, level, i, j }, rows, columns, own);
        if (isBoth) viewer.receive({ source, reduce, level, i: j, j: i }, columns, rows, turned(own, rows, columns));
        start += rows * columns;
      }
      root.dataset.tiles = Number(root.dataset.tiles || 0) + tiles.length;
    }

    // Every message to the kernel makes JupyterLab redraw its toolbar and status twice, so a few frames share an answer,
    // which says how many may be on their way until the next one.
    function painted(which) {
      [newest, took] = [which, performance.now() - receivedAt];
      if (!resting) answer();
    }
    function answer() {
      send({ type: "painted", epoch: newest, ahead: Math.max(1, Math.min(MOST_AHEAD, Math.round(ANSWER_EVERY / took))) });
      newest = null;
      resting = setTimeout(() => {
        resting = 0;
        if (newest !== null) answer();
      }, ANSWER_EVERY);
    }

    function tellTime({ count, at, text }) {
      slider.hidden = count < 2;
      Object.assign(knob, { max: count - 1, value: at });
      told.textContent = ` ${text}`;
      root.dataset.time = text;
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
        [epoch, receivedAt] = [message.epoch, performance.now()];
        if (message.about) viewer.rearrange(message.about, placesOf(buffers[1]));
        if (message.times) tellTime(message.times);
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
      times: tellTime,
    };
    const receive = (message, buffers) => kinds[message.type]?.(message, buffers);
    knob.addEventListener("input", () => send({ type: "time", at: Number(knob.value) }));
    model.on("msg:custom", receive);
    send({ type: "ready" });
    return () => {
      model.off("msg:custom", receive);
      clearTimeout(resting);
      viewer?.close();
      send({ type: "gone" });
    };
  },
};
