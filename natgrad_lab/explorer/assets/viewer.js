// The zoomable matrix: tiles painted on a canvas, rulings and labels on a second one, a map of the whole, a search.
// `host.request(source, reduce, level, tiles)` asks for tiles; whoever has one calls viewer.receive, in any order, at any time.

const LEFT = 92; // room for labels
const TOP = 40;
const SMALLEST_CELL = 2; // pixels
const KEPT_BYTES = 2 ** 27;
const EACH = 1000; // ms between two spectra of a training
const SLOW = 500; // ms after which the reader is told that something is computed
const AGAIN = 4000; // ms after which what did not come is asked for again

const ORDERS = [["layer", "layer"], ["unit", "unit, by its share of the trace"], ["eigenvector", "leading eigenvector"]];
const SCALES = {
  log: { label: "|F|, log", reduce: "rms", colours: "sequential", log: true, signed: false },
  magnitude: { label: "|F|, linear", reduce: "rms", colours: "sequential", log: false, signed: false },
  signedlog: { label: "signed, log", reduce: "mean", colours: "diverging", log: true, signed: true },
  signed: { label: "signed, linear", reduce: "mean", colours: "diverging", log: false, signed: true },
  correlationsize: { label: "|correlation|, log", reduce: "correlation size", colours: "sequential", log: true, signed: false, limits: [1e-3, 1] },
  correlation: { label: "correlation", reduce: "correlation", colours: "diverging", log: false, signed: true, limits: [1e-3, 1] },
};

function createViewer(root, about, tables, host) {
  let space = geometry(about);
  const make = (parent, tag, kind, text = "") => {
    const node = document.createElement(tag);
    node.className = kind;
    node.textContent = text;
    parent.appendChild(node);
    return node;
  };
  root.classList.add("natgrad-explorer");
  root.dataset.lmSuppressShortcuts = "true";
  const bar = make(root, "div", "ngx-bar");
  const choose = (label, options, where = bar) => {
    const holder = make(where, "label", "", `${label} `);
    const menu = make(holder, "select", "");
    for (const [value, text] of options) make(menu, "option", "", text).value = value;
    return menu;
  };
  const sourceMenu = choose("matrix", about.sources.map((name) => [name, name]));
  const scaleMenu = choose("colours", Object.entries(SCALES).filter(([name]) => !about.scales || about.scales.includes(name)).map(([name, scale]) => [name, scale.label]));
  const whiten = make(bar, "button", "ngx-whiten", "Whiten inputs");
  Object.assign(whiten, { type: "button", hidden: !host.arrange, title: "PRONG's coordinates: every layer's inputs white; again for before" });
  const search = make(bar, "span", "ngx-search");
  const words = make(search, "input", "");
  Object.assign(words, { type: "search", placeholder: "W2[3,5] x W1[0,2]" });
  words.setAttribute("aria-label", "jump to a parameter or a block");
  const go = make(search, "button", "", "Go");
  go.type = "button";
  const buttons = make(bar, "span", "ngx-buttons");
  const button = (text, title, act, where = buttons) => {
    const node = make(where, "button", "", text);
    Object.assign(node, { type: "button", title });
    node.setAttribute("aria-label", title);
    node.addEventListener("click", act);
  };
  const more = make(root, "details", "ngx-more");
  make(more, "summary", "", "more");
  const status = make(root, "div", "ngx-status");
  const rest = make(more, "div", "ngx-bar");
  const problem = make(root, "div", "ngx-problem");
  problem.setAttribute("role", "alert");
  const body = make(root, "div", "ngx-body");
  const stage = make(body, "div", "ngx-stage");
  const pixels = make(stage, "canvas", "ngx-pixels");
  const overlay = make(stage, "canvas", "ngx-overlay");
  overlay.tabIndex = 0;
  overlay.setAttribute("role", "application");
  overlay.setAttribute("aria-label", "Fisher matrix; arrow keys move, plus and minus zoom, Home shows all, w a s d move a cursor");
  const side = make(body, "div", "ngx-side");
  const beside = make(side, "div", "ngx-beside");
  const map = make(beside, "canvas", "ngx-map");
  map.title = "the whole matrix; the frame is what is shown";
  const key = make(beside, "div", "ngx-key");
  const ramp = make(key, "canvas", "ngx-ramp");
  [ramp.width, ramp.height] = [256, 1];
  const ends = make(key, "div", "ngx-ends");
  const [lowText, midText, highText] = [0, 1, 2].map(() => make(ends, "span", ""));
  const caption = make(key, "div", "ngx-small");
  const readout = make(side, "div", "ngx-readout");
  readout.setAttribute("aria-live", "polite");
  const HINT = "Wheel or + and − zoom, drag or arrow keys move, point to read an entry.";
  readout.textContent = HINT;

  const state = { row: about.dim / 2, column: about.dim / 2, span: about.dim, source: about.sources[0], scale: "log", ...about.arrangement };
  let damping = 0; // a timer
  const panel = createPanel(side, make, (value) => {
    state.damping = value;
    clearTimeout(damping);
    damping = setTimeout(() => host.arrange?.({ damping: value }), 80);
    host.moved?.({ ...state });
  });
  let [analysed, analysedAt] = [-1, -Infinity];
  const tiles = new Map(); // key -> {values, rows, columns, bytes, version}
  let [held, version, queued, size, cursor, asked, askedAt, painted] = [0, 0, false, 0, null, "", 0, 0];
  let limits = null;
  let mapAsked = "";
  let ruled = "";
  let waitingSince = null;
  let pending = false; // an arrangement that was asked for
  let complete = -1;
  let visible = 0; // tiles of the view
  about.epoch ??= 0;

  const scale = () => SCALES[state.scale];
  const reduceAt = (level) => (level > 0 ? scale().reduce : scale().limits ? "correlations" : "entries");
  const keyOf = (level, i, j) => `${state.source}|${reduceAt(level)}|${level}|${i}|${j}`;
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

  function remember(key, tile) {
    if (tiles.has(key)) held -= tiles.get(key).values.byteLength;
    tiles.delete(key);
    tiles.set(key, tile);
    held += tile.values.byteLength;
    for (const [old, each] of tiles) {
      if (held <= KEPT_BYTES) break;
      held -= each.values.byteLength;
      tiles.delete(old);
    }
  }

  function touch(key) {
    const tile = tiles.get(key);
    if (tile) {
      tiles.delete(key);
      tiles.set(key, tile);
    }
    return tile;
  }

  function bytesOf(tile) {
    if (tile.version === version) return tile.bytes;
    const [low, high] = limits;
    const kind = scale();
    const bytes = new Uint8Array(tile.values.length);
    const [bottom, decades] = [Math.log10(low), Math.log10(high / low)];
    for (let k = 0; k < bytes.length; k++) {
      const value = tile.values[k];
      const size = Math.abs(value);
      let place = kind.log ? (size > 0 ? (Math.log10(size) - bottom) / decades : 0) : size / high;
      place = place > 1 ? 1 : place > 0 ? place : 0;
      bytes[k] = kind.signed ? 127.5 + (value < 0 ? -127.5 : 127.5) * place : 255 * place + 0.5;
    }
    [tile.bytes, tile.version] = [bytes, version];
    return bytes;
  }

  const from = (axis) => state[axis] - state.span / 2;
  function levelNow() {
    const wanted = Math.max(8, size / SMALLEST_CELL);
    for (let level = about.finest || 0; level < about.levels; level++) {
      const counts = ["row", "column"].map((axis) => {
        const [a, b] = [clamp(Math.floor(from(axis)), 0, about.dim - 1), clamp(Math.ceil(from(axis) + state.span), 1, about.dim)];
        return space.cellAt(level, b - 1) - space.cellAt(level, a) + 1;
      });
      if (Math.max(...counts) <= wanted) return level;
    }
    return about.levels - 1;
  }

  // Per pixel: which tile, and which cell of it; -1 outside of the matrix.
  function places(axis, level, ratio) {
    const count = pixels.width;
    const [tile, cell] = [new Int32Array(count), new Int32Array(count)];
    const [start, step] = [from(axis), state.span / count];
    let [stop, now] = [-1, 0];
    for (let k = 0; k < count; k++) {
      const index = Math.floor(start + (k + 0.5) * step);
      if (index < 0 || index >= about.dim) {
        tile[k] = -1;
        continue;
      }
      if (index >= stop) {
        now = space.cellAt(level, index);
        stop = space.edge(level, now + 1);
      }
      tile[k] = Math.floor(now / about.tile);
      cell[k] = now % about.tile;
    }
    return { tile, cell };
  }

  function runs({ tile }) {
    const found = [];
    for (let k = 0; k < tile.length; k++) {
      if (tile[k] < 0) continue;
      if (k && found.length && found[found.length - 1].stop === k && tile[k] === tile[k - 1]) found[found.length - 1].stop++;
      else found.push({ tile: tile[k], start: k, stop: k + 1 });
    }
    return found;
  }

  function paintLevel(level, target, table) {
    const [rows, columns] = [places("row", level), places("column", level)];
    const missing = [];
    visible = 0;
    for (const down of runs(rows)) {
      for (const across of runs(columns)) {
        visible++;
        const tile = touch(keyOf(level, down.tile, across.tile));
        if (tile?.epoch !== about.epoch) missing.push([down.tile, across.tile]); // an old one serves until the new one comes
        if (!tile) continue;
        const bytes = bytesOf(tile);
        for (let y = down.start; y < down.stop; y++) {
          const line = rows.cell[y] * tile.columns;
          for (let x = across.start, at = y * pixels.width + x; x < across.stop; x++, at++)
            target[at] = table[bytes[line + columns.cell[x]]];
        }
      }
    }
    return missing;
  }

  function draw() {
    queued = false;
    if (!size) return;
    const context = pixels.getContext("2d");
    const image = context.createImageData(pixels.width, pixels.height);
    const target = new Uint32Array(image.data.buffer);
    const table = tables[scale().colours];
    const level = levelNow();
    let missing = paintLevel(level, target, table);
    if (missing.some(([i, j]) => !tiles.has(keyOf(level, i, j)))) {
      for (let coarse = about.levels - 1; coarse > level; coarse--) paintLevel(coarse, target, table);
      missing = paintLevel(level, target, table);
    }
    context.putImageData(image, 0, 0);
    note(pixels, "level", level);
    note(pixels, "missing", missing.length);
    pixels.dataset.drawn = ++painted;
    if (!missing.length && complete !== about.epoch) {
      complete = about.epoch; // every tile of this matrix that the view needs is on screen
      root.dataset.frames = complete;
      host.painted?.(complete);
    }
    if (missing.length) waitingSince ??= performance.now();
    else waitingSince = null;
    tellWork();
    if (!missing.length) analyse();
    ask(level, missing);
    rule(level);
    drawMap();
    read(level);
  }

  function ask(level, missing) {
    const text = missing.length ? `${keyOf(level, "", "")}${missing.join(";")}` : "";
    const old = performance.now() - askedAt > AGAIN;
    if (!missing.length || (text === asked && !old)) return;
    [asked, askedAt] = [text, performance.now()];
    const middle = ["row", "column"].map((axis) => space.cellAt(level, clamp(Math.floor(state[axis]), 0, about.dim - 1)) / about.tile - 0.5);
    const far = ([i, j]) => (i - middle[0]) ** 2 + (j - middle[1]) ** 2;
    host.request(state.source, reduceAt(level), level, missing.sort((a, b) => far(a) - far(b)), visible === missing.length);
    setTimeout(redraw, AGAIN + 50);
  }

  function redraw() {
    if (queued) return;
    queued = true;
    let done = false;
    const once = () => {
      if (!done) {
        done = true;
        draw();
      }
    };
    requestAnimationFrame(once);
    setTimeout(once, document.hidden ? 0 : 250);
  }

  // What did not change is not written: every write lays out the whole notebook again.
  function say(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }
  function note(node, name, value) {
    if (node.dataset[name] !== String(value)) node.dataset[name] = value;
  }

  function tellWork() {
    const slow = waitingSince !== null && performance.now() - waitingSince > SLOW;
    say(status, pending ? "computing another arrangement …" : slow && !problem.textContent ? "computing …" : "");
    if (waitingSince !== null && !slow) setTimeout(redraw, SLOW);
  }

  const isNumbered = (level) => level === 0 && size / state.span >= 44;

  function analyse() {
    if (!host.analyse || analysed === about.epoch) return;
    const wait = analysedAt + (about.live ? EACH : 0) - performance.now();
    if (wait > 0) return void setTimeout(redraw, wait + 10);
    [analysed, analysedAt] = [about.epoch, performance.now()];
    host.analyse();
  }

  function rule(level) {
    // The numbers change with the matrix, the rest does not.
    const drawn = JSON.stringify([level, state, size, cursor, overlay.width, isNumbered(level) && painted, getComputedStyle(root).color]);
    if (drawn === ruled) return;
    ruled = drawn;
    paintOver(overlay.getContext("2d"), level);
  }

  function paintOver(pen, level) {
    const ratio = overlay.width / (size + LEFT);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, size + LEFT, size + TOP);
    const style = getComputedStyle(root);
    const room = size / state.span;
    const ink = scale().signed ? "0,0,0" : "255,255,255";
    pen.font = `11px ${style.fontFamily}`;
    pen.fillStyle = style.color;
    const at = (axis, index) => (index - from(axis)) * room;
    const [left, right] = [Math.max(0, at("column", 0)), Math.min(size, at("column", about.dim))];
    const [top, bottom] = [Math.max(0, at("row", 0)), Math.min(size, at("row", about.dim))];
    const line = (axis, place, colour) => {
      pen.strokeStyle = colour;
      pen.beginPath();
      if (axis === "column") [pen.moveTo(LEFT + place, TOP + top), pen.lineTo(LEFT + place, TOP + bottom)];
      else [pen.moveTo(LEFT + left, TOP + place), pen.lineTo(LEFT + right, TOP + place)];
      pen.stroke();
    };
    for (const axis of ["row", "column"]) {
      const [low, high] = [Math.max(0, from(axis)), Math.min(about.dim, from(axis) + state.span)];
      for (const layer of space.layers) {
        const stop = layer.start + layer.units * layer.width;
        if (layer.start > high || stop < low) continue;
        if (layer.rows && layer.width * room >= 9)
          for (let unit = Math.max(1, Math.ceil((low - layer.start) / layer.width)); unit < layer.units; unit++) {
            const index = layer.start + unit * layer.width;
            if (index > high) break;
            line(axis, at(axis, index), `rgba(${ink},0.3)`);
          }
        if (layer.start > 0 && layer.start >= low) line(axis, at(axis, layer.start), `rgba(${ink},0.9)`);
      }
      label(pen, axis, low, high, room, at);
    }
    if (isNumbered(level)) numbers(pen, room, at);
    if (cursor) {
      const box = ["row", "column"].map((axis) => {
        const cell = space.cellAt(level, cursor[axis]);
        return [at(axis, space.edge(level, cell)), at(axis, space.edge(level, cell + 1))];
      });
      pen.strokeStyle = `rgb(${ink})`;
      pen.lineWidth = 1.5;
      const [h, w] = box.map(([a, b]) => Math.max(6, b - a));
      pen.strokeRect(LEFT + (box[1][0] + box[1][1] - w) / 2, TOP + (box[0][0] + box[0][1] - h) / 2, w, h);
      pen.lineWidth = 1;
    }
  }

  function label(pen, axis, low, high, room, at) {
    let free = -Infinity;
    let shown = 0;
    for (const [index, text] of space.ticks(Math.floor(low), Math.ceil(high), room)) {
      const place = at(axis, index);
      if (place < 0 || place >= size) continue;
      const width = pen.measureText(text).width;
      const middle = place + Math.min(room, 60) / 2;
      if (axis === "column") {
        const start = Math.min(middle, size - width);
        if (start < free) continue;
        pen.fillText(text, LEFT + start, TOP - 10);
        pen.fillRect(LEFT + place, TOP - 6, 1, 6);
        free = start + width + 8;
      } else {
        if (middle < free || middle > size) continue;
        pen.fillText(text, LEFT - 8 - Math.min(width, LEFT - 10), TOP + Math.max(middle + 4, 9), LEFT - 10);
        pen.fillRect(LEFT - 6, TOP + place, 6, 1);
        free = middle + 14;
      }
      shown++;
    }
    if (!shown) {
      const text = `in ${space.name(clamp(Math.floor(low), 0, about.dim - 1))} …`;
      if (axis === "column") pen.fillText(text, LEFT, TOP - 10);
      else pen.fillText(text, 2, TOP + 9, LEFT - 6);
    }
  }

  function numbers(pen, room, at) {
    pen.textAlign = "center";
    for (let i = Math.max(0, Math.floor(from("row"))); i < Math.min(about.dim, from("row") + state.span); i++)
      for (let j = Math.max(0, Math.floor(from("column"))); j < Math.min(about.dim, from("column") + state.span); j++) {
        const [x, y] = [at("column", j), at("row", i)];
        const cell = x > -2 && x + room < size + 2 && y > -room / 3 && y + room * 0.7 < size && valueAt(0, i, j);
        if (!cell) continue;
        const byte = bytesOf(cell.tile)[cell.at];
        pen.fillStyle = (scale().signed ? Math.abs(byte - 127.5) > 80 : byte < 150) ? "white" : "black";
        pen.fillText(short(cell.value), LEFT + x + room / 2, TOP + y + room / 2 + 4, room - 4);
      }
    pen.textAlign = "start";
  }

  const short = (value) => (value === 0 ? "0" : Math.abs(value) < 0.01 || Math.abs(value) >= 1000 ? value.toExponential(1) : value.toPrecision(3));

  function valueAt(level, row, column) {
    const [i, j] = [space.cellAt(level, row), space.cellAt(level, column)];
    const tile = tiles.get(keyOf(level, Math.floor(i / about.tile), Math.floor(j / about.tile)));
    if (!tile) return null;
    const at = (i % about.tile) * tile.columns + (j % about.tile);
    return { tile, at, value: tile.values[at], i, j };
  }

  const symbol = () => {
    const matrix = (state.source === "exact" ? "F" : state.source) + (state.white ? " in white coordinates" : "");
    return scale().limits ? `correlation in ${matrix}` : matrix;
  };

  function read(level) {
    if (!cursor) return say(readout, HINT);
    const cell = valueAt(level, cursor.row, cursor.column);
    const span = (axis) => {
      const number = space.cellAt(level, cursor[axis]);
      const [a, b] = [space.edge(level, number), space.edge(level, number + 1)];
      return [b - a, b - a === 1 ? space.name(a) : `${space.name(a)} … ${space.name(b - 1)}`];
    };
    const [[height, one], [width, two]] = [span("row"), span("column")];
    const value = cell ? cell.value.toPrecision(6) : "…";
    const how = height * width === 1 ? symbol() : `${scale().signed ? "mean" : "root mean square"} of ${(height * width).toLocaleString("en")} entries`;
    say(readout, `${one} × ${two}: ${how} = ${value}`);
    readout.dataset.value = value;
  }

  function drawMap() {
    const level = about.levels - 1;
    const pen = map.getContext("2d");
    const target = pen.createImageData(map.width, map.height);
    const out = new Uint32Array(target.data.buffer);
    const table = tables[scale().colours];
    const wanted = new Map();
    const cells = Array.from({ length: map.width }, (_, k) => space.cellAt(level, Math.floor(((k + 0.5) * about.dim) / map.width)));
    const found = new Map(); // tile -> its values and colours: few, looked up once
    const tileAt = (i, j) => {
      const place = i * 4096 + j;
      if (!found.has(place)) {
        const tile = tiles.get(keyOf(level, i, j));
        if (tile?.epoch !== about.epoch) wanted.set(place, [i, j]);
        found.set(place, tile && { tile, bytes: bytesOf(tile) });
      }
      return found.get(place);
    };
    for (let y = 0; y < map.height; y++) {
      const [i, down] = [Math.floor(cells[y] / about.tile), cells[y] % about.tile];
      for (let x = 0; x < map.width; x++) {
        const one = tileAt(i, Math.floor(cells[x] / about.tile));
        if (one) out[y * map.width + x] = table[one.bytes[down * one.tile.columns + (cells[x] % about.tile)]];
      }
    }
    pen.putImageData(target, 0, 0);
    const room = map.width / about.dim;
    pen.strokeStyle = "#ff2d95";
    pen.lineWidth = 2;
    const sized = Math.max(5, state.span * room);
    pen.strokeRect(state.column * room - sized / 2, state.row * room - sized / 2, sized, sized);
    const text = `${about.epoch}${keyOf(level, "", "")}`;
    if (wanted.size && !Number(pixels.dataset.missing) && mapAsked !== text) {
      mapAsked = text;
      host.request(state.source, reduceAt(level), level, [...wanted.values()]);
    }
  }

  function legend() {
    const ramped = new ImageData(256, 1);
    new Uint32Array(ramped.data.buffer).set(tables[scale().colours]);
    ramp.getContext("2d").putImageData(ramped, 0, 0);
    const [low, high] = limits.map((value) => value.toExponential(1));
    const kind = scale();
    [lowText.textContent, midText.textContent, highText.textContent] = kind.signed
      ? [`−${high}`, kind.log ? `±${low}` : "0", high]
      : [kind.log ? low : "0", "", high];
    caption.textContent = `${symbol()}, ${kind.log ? "logarithmic" : "linear"}. A cell of many entries shows their ${kind.signed ? "mean" : "root mean square"}.`;
  }

  function changed() {
    state.span = clamp(state.span, Math.min(4, about.dim), about.dim);
    const half = state.span / 2;
    for (const axis of ["row", "column"]) state[axis] = clamp(state[axis], half, about.dim - half);
    host.moved?.({ ...state });
    redraw();
  }

  function recolour() {
    limits = scale().limits || about.limits[state.source] || about.limits[about.sources[0]] || [1e-3, 1];
    version++;
    [sourceMenu.value, scaleMenu.value, orderMenu.value] = [state.source, state.scale, state.order];
    whiten.setAttribute("aria-pressed", state.white);
    legend();
    changed();
  }

  function zoom(factor, at = null) {
    const span = clamp(state.span * factor, Math.min(4, about.dim), about.dim);
    for (const axis of ["row", "column"]) if (at) state[axis] = at[axis] + (state[axis] - at[axis]) * (span / state.span);
    state.span = span;
    changed();
  }

  function jump(text) {
    try {
      const [rows, columns] = space.find(text);
      problem.textContent = "";
      const middle = (part) => (part[0] + part[1]) / 2;
      const most = Math.max(rows[1] - rows[0], columns[1] - columns[0]);
      Object.assign(state, { row: middle(rows), column: middle(columns), span: most === 1 ? 12 : most * 1.04 });
      cursor = { row: rows[0], column: columns[0] };
      changed();
    } catch (error) {
      problem.textContent = error.message;
    }
  }

  const whole = () => {
    state.span = about.dim;
    changed();
  };
  button("+", "zoom in", () => zoom(0.5));
  button("−", "zoom out", () => zoom(2));
  button("All", "show the whole matrix", whole);
  const orderMenu = choose("sort by", ORDERS, rest);
  orderMenu.parentNode.hidden = !host.arrange;
  orderMenu.addEventListener("change", () => arrange({ order: orderMenu.value }));
  whiten.addEventListener("click", () => arrange({ white: !state.white }));
  function arrange(change) {
    Object.assign(state, change);
    pending = true;
    recolour();
    host.arrange(change);
  }
  const saves = make(rest, "span", "ngx-buttons");
  const background = () => {
    const colour = getComputedStyle(root).getPropertyValue("--jp-layout-color0").trim() || getComputedStyle(document.body).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? "white" : colour;
  };
  button("PNG", "save this view as PNG", () => {
    const both = document.createElement("canvas");
    [both.width, both.height] = [overlay.width, overlay.height];
    const pen = both.getContext("2d");
    pen.fillStyle = background();
    pen.fillRect(0, 0, both.width, both.height);
    const ratio = overlay.width / (size + LEFT);
    pen.drawImage(pixels, LEFT * ratio, TOP * ratio, size * ratio, size * ratio);
    pen.drawImage(overlay, 0, 0);
    both.toBlob((blob) => saveAs(blob, "fisher.png"));
  }, saves);
  button("SVG", "save this view as SVG: labels and lines stay text and lines", () => {
    const { pen, text } = svgPen(document.createElement("canvas").getContext("2d"));
    paintOver(pen, levelNow());
    const image = `<image x="${LEFT}" y="${TOP}" width="${size}" height="${size}" style="image-rendering:pixelated" href="${pixels.toDataURL()}"/>`;
    const family = getComputedStyle(root).fontFamily;
    saveAs(new Blob([text(size + LEFT, size + TOP, family, background(), image)], { type: "image/svg+xml" }), "fisher.svg");
  }, saves);
  if (host.save)
    button("npz", "save the entries of this region with their names, for NumPy", () => {
      const ends = (axis) => [Math.max(0, Math.floor(from(axis))), Math.min(about.dim, Math.ceil(from(axis) + state.span))];
      host.save({ rows: ends("row"), columns: ends("column"), source: state.source });
    }, saves);
  if (host.arrange)
    button("Copy view", "copy what ng.explore(..., state=...) needs to open this view again", () => {
      const text = JSON.stringify(state).replace(/:true/g, ":True").replace(/:false/g, ":False");
      navigator.clipboard?.writeText(text);
      root.dataset.copied = text;
    }, saves);

  const pointed = (event) => {
    const box = pixels.getBoundingClientRect();
    const place = (axis, offset) => from(axis) + (offset / size) * state.span;
    return { row: place("row", event.clientY - box.top), column: place("column", event.clientX - box.left) };
  };
  const isInside = (at) => ["row", "column"].every((axis) => at[axis] >= 0 && at[axis] < about.dim && Math.abs(at[axis] - state[axis]) <= state.span / 2);
  const whole_number = (at) => ({ row: Math.floor(at.row), column: Math.floor(at.column) });
  let dragged = null;
  overlay.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(2 ** clamp(event.deltaY / (event.deltaMode ? 6 : 240), -1, 1), pointed(event));
  }, { passive: false });
  overlay.addEventListener("dblclick", (event) => zoom(0.4, pointed(event)));
  overlay.addEventListener("pointerdown", (event) => {
    overlay.setPointerCapture(event.pointerId);
    dragged = pointed(event);
  });
  overlay.addEventListener("pointerup", () => (dragged = null));
  overlay.addEventListener("pointercancel", () => (dragged = null));
  overlay.addEventListener("pointermove", (event) => {
    const at = pointed(event);
    if (dragged) {
      for (const axis of ["row", "column"]) state[axis] += dragged[axis] - at[axis];
      return changed();
    }
    cursor = isInside(at) ? whole_number(at) : null;
    redraw();
  });
  overlay.addEventListener("pointerleave", () => {
    if (document.activeElement !== overlay) cursor = null;
    redraw();
  });
  const MOVES = { ArrowLeft: ["column", -1], ArrowRight: ["column", 1], ArrowUp: ["row", -1], ArrowDown: ["row", 1] };
  const STEPS = { a: ["column", -1], d: ["column", 1], w: ["row", -1], s: ["row", 1] };
  overlay.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [move, step] = [MOVES[event.key], STEPS[event.key]];
    if (move) state[move[0]] += move[1] * state.span * (event.shiftKey ? 0.5 : 0.1);
    else if (step) stepCursor(...step);
    else if (event.key === "+" || event.key === "=") return void (event.preventDefault(), zoom(0.7));
    else if (event.key === "-") return void (event.preventDefault(), zoom(1 / 0.7));
    else if (event.key === "Home") whole();
    else if (event.key === "Escape") cursor = null;
    else return;
    event.preventDefault();
    event.stopPropagation();
    changed();
  });
  function stepCursor(axis, by) {
    const level = levelNow();
    cursor ??= whole_number({ row: clamp(state.row, 0, about.dim - 1), column: clamp(state.column, 0, about.dim - 1) });
    const cell = clamp(space.cellAt(level, cursor[axis]) + by, 0, space.grid(level).count - 1);
    cursor = { ...cursor, [axis]: space.edge(level, cell) };
    const away = cursor[axis] - state[axis];
    if (Math.abs(away) > state.span / 2) state[axis] += away;
  }
  map.addEventListener("pointerdown", (event) => {
    const box = map.getBoundingClientRect();
    state.column = ((event.clientX - box.left) / box.width) * about.dim;
    state.row = ((event.clientY - box.top) / box.height) * about.dim;
    changed();
  });
  go.addEventListener("click", () => jump(words.value));
  words.addEventListener("keydown", (event) => {
    event.stopPropagation(); // a notebook has its own meaning for letters and Enter
    if (event.key === "Enter") jump(words.value);
  });
  sourceMenu.addEventListener("change", () => {
    problem.textContent = "";
    state.source = sourceMenu.value;
    recolour();
  });
  scaleMenu.addEventListener("change", () => {
    problem.textContent = "";
    state.scale = scaleMenu.value;
    recolour();
  });

  function layOut() {
    const room = root.clientWidth;
    if (!room) return;
    const wide = room >= 820;
    body.classList.toggle("ngx-narrow", !wide);
    size = Math.max(160, Math.min(about.side || 620, room - LEFT - (wide ? 320 : 4)));
    const ratio = window.devicePixelRatio || 1;
    [pixels.width, pixels.height] = [Math.round(size * ratio), Math.round(size * ratio)];
    [overlay.width, overlay.height] = [Math.round((size + LEFT) * ratio), Math.round((size + TOP) * ratio)];
    [map.width, map.height] = [130, 130];
    panel.draw();
    Object.assign(pixels.style, { left: `${LEFT}px`, top: `${TOP}px`, width: `${size}px`, height: `${size}px` });
    ruled = ""; // a canvas of a new size is empty
    const outer = { width: `${size + LEFT}px`, height: `${size + TOP}px` };
    [overlay, stage].forEach((node) => Object.assign(node.style, outer));
    redraw();
  }
  const resized = new ResizeObserver(layOut);
  resized.observe(root);
  recolour();
  panel.damp(state.damping);
  layOut();

  return {
    limit(newLimits) {
      const changes = Object.entries(newLimits).filter(([name, pair]) => String(pair) !== String(about.limits[name]));
      Object.assign(about.limits, newLimits);
      if (changes.some(([name]) => name === state.source)) recolour();
    },
    rearrange(given, places) {
      const moved = places || about.places; // cells of another shape
      Object.assign(about, given, { places, limits: about.limits });
      space = geometry(about);
      if (moved) [tiles.clear(), (held = 0)];
      sourceMenu.replaceChildren();
      for (const name of about.sources) make(sourceMenu, "option", "", name).value = name;
      if (!about.sources.includes(state.source)) state.source = about.sources[0];
      this.arranged(given.arrangement);
    },
    arranged(arrangement) {
      const sliding = state.damping;
      Object.assign(state, arrangement);
      if (sliding !== state.damping) panel.damp(state.damping);
      pending = false;
      Object.assign(root.dataset, { order: state.order, white: state.white });
      cursor = null;
      recolour();
    },
    analysed: panel.take,
    receive(source, reduce, level, i, j, rows, columns, values) {
      remember(`${source}|${reduce}|${level}|${i}|${j}`, { values, rows, columns, epoch: about.epoch, version: -1, bytes: null });
      redraw();
    },
    renew(epoch, newLimits) {
      about.epoch = epoch;
      [asked, mapAsked] = ["", ""];
      this.limit(newLimits);
      redraw();
    },
    show(given) {
      for (const name of ["row", "column", "span"]) if (Number.isFinite(given[name])) state[name] = given[name];
      if (about.sources.includes(given.source)) state.source = given.source;
      if (SCALES[given.scale]) state.scale = given.scale;
      if (given.damping > 0) state.damping = given.damping;
      panel.damp(state.damping);
      recolour();
    },
    retry() {
      asked = "";
      redraw();
    },
    complain(text, dear) {
      problem.textContent = text;
      const means = dear && { log: "signedlog", magnitude: "signed", correlationsize: "correlation" }[state.scale];
      if (!means) return;
      problem.textContent = `${text} Now shown: ${SCALES[means].label}.`;
      state.scale = means;
      recolour();
    },
    jump,
    state,
    space,
    close: () => resized.disconnect(),
  };
}

function colourTable(bytes) {
  const table = new Uint32Array(256);
  const view = new Uint8Array(table.buffer);
  for (let k = 0; k < 256; k++) view.set([bytes[3 * k], bytes[3 * k + 1], bytes[3 * k + 2], 255], 4 * k);
  return table;
}
