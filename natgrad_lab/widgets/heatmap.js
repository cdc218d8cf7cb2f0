// A matrix of colour numbers on one canvas; rulings, labels and the cursor on a second one above it.

const MARGIN = 22; // room for layer names, left and above
const CLOSEST = 9; // rulings closer than this many pixels are left out

function render({ model, el }) {
  const root = element(el, "div", "natgrad-heatmap");
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab: arrow keys are ours while the picture has the focus
  const stage = element(root, "div", "natgrad-heatmap-stage");
  const pixels = element(stage, "canvas", "natgrad-heatmap-pixels");
  const overlay = element(stage, "canvas", "natgrad-heatmap-overlay");
  overlay.tabIndex = 0;
  overlay.setAttribute("role", "img");
  const bar = element(root, "div", "natgrad-heatmap-bar");
  const low = element(bar, "span", "natgrad-number");
  const ramp = element(bar, "canvas", "natgrad-heatmap-ramp");
  const high = element(bar, "span", "natgrad-number");
  const title = element(root, "div", "natgrad-heatmap-title");
  const readout = element(root, "div", "natgrad-heatmap-readout");
  readout.setAttribute("aria-live", "polite");
  readout.textContent = model.get("hint");
  [ramp.width, ramp.height] = [256, 1];

  const tables = {};
  const flow = connect(model, { colours: learnColours, text: showText });
  let frame = null;
  let image = null;
  let cursor = null;
  let asked = 0;
  let drawn = 0;

  function learnColours(message, buffers) {
    message.names.forEach((name, i) => {
      const rgb = new Uint8Array(buffers[i].buffer, buffers[i].byteOffset, 768);
      const table = new Uint32Array(256);
      const bytes = new Uint8Array(table.buffer);
      for (let k = 0; k < 256; k++) bytes.set([rgb[3 * k], rgb[3 * k + 1], rgb[3 * k + 2], 255], 4 * k);
      tables[name] = table;
    });
  }

  flow.paint = (header, [buffer]) => {
    const table = tables[header.colours];
    if (!table) return; // sent to an earlier view of a reloaded page; ours begins with the colours
    const source = new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
    const context = pixels.getContext("2d");
    if (!image || pixels.width !== header.columns || pixels.height !== header.rows) {
      [pixels.width, pixels.height] = [header.columns, header.rows];
      image = context.createImageData(header.columns, header.rows);
    }
    const target = new Uint32Array(image.data.buffer);
    for (let k = 0; k < target.length; k++) target[k] = table[source[k]];
    context.putImageData(image, 0, 0);
    const decorated = frame && frame.decoration === header.decoration;
    frame = header;
    overlay.setAttribute("aria-label", frame.alt);
    if (!decorated) decorate(table);
    pixels.dataset.drawn = ++drawn;
    pixels.dataset.stamp = header.stamp;
    if (cursor && performance.now() - asked > 250) ask();
  };

  function decorate(table) {
    const ramped = new ImageData(256, 1);
    new Uint32Array(ramped.data.buffer).set(table);
    ramp.getContext("2d").putImageData(ramped, 0, 0);
    [low.textContent, high.textContent, title.textContent] = [frame.low, frame.high, frame.title];
    if (cursor) cursor = { row: Math.min(cursor.row, frame.rows - 1), column: Math.min(cursor.column, frame.columns - 1) };
    layOut();
  }

  function layOut() {
    if (!frame || !root.clientWidth) return;
    const longest = Math.max(frame.rows, frame.columns);
    const side = Math.max(60, Math.min(model.get("side"), root.clientWidth) - MARGIN);
    const [width, height] = [(side * frame.columns) / longest, (side * frame.rows) / longest];
    const place = { left: `${MARGIN}px`, top: `${MARGIN}px`, width: `${width}px`, height: `${height}px` };
    Object.assign(pixels.style, place);
    Object.assign(stage.style, { width: `${width + MARGIN}px`, height: `${height + MARGIN}px` });
    Object.assign(overlay.style, { width: stage.style.width, height: stage.style.height });
    rule(width, height);
  }

  function rule(width, height) {
    const scale = window.devicePixelRatio || 1;
    [overlay.width, overlay.height] = [Math.ceil((width + MARGIN) * scale), Math.ceil((height + MARGIN) * scale)];
    const pen = overlay.getContext("2d");
    pen.scale(scale, scale);
    pen.translate(MARGIN, MARGIN);
    const dark = frame.colours === "sequential" ? "255,255,255" : "0,0,0";
    const style = getComputedStyle(root);
    pen.font = `12px ${style.fontFamily}`;
    pen.textAlign = "center";
    for (const axis of ["columns", "rows"]) {
      const lines = frame.grid[axis];
      const length = axis === "columns" ? width : height;
      const unit = length / frame[axis];
      pen.save();
      if (axis === "rows") pen.transform(0, 1, 1, 0, 0, 0); // draw rows as columns, mirrored at the diagonal
      const across = axis === "columns" ? height : width;
      const line = (at, colour, dash) => {
        pen.strokeStyle = colour;
        pen.setLineDash(dash);
        pen.beginPath();
        pen.moveTo(at * unit, 0);
        pen.lineTo(at * unit, across);
        pen.stroke();
      };
      const isApart = (places) => places.length && length / (places.length + 1) >= CLOSEST;
      if (isApart(lines.units)) lines.units.forEach((at) => line(at, `rgba(${dark},0.35)`, []));
      if (isApart(lines.biases)) lines.biases.forEach((at) => line(at, `rgba(${dark},0.45)`, [1, 4]));
      lines.layers.slice(1).forEach(([start]) => line(start, `rgba(${dark},0.85)`, []));
      pen.restore();
      label(pen, axis, lines.layers, unit, style.color);
    }
    if (cursor) mark(pen, width / frame.columns, height / frame.rows, dark);
  }

  function label(pen, axis, layers, unit, colour) {
    pen.save();
    if (axis === "rows") pen.rotate(-Math.PI / 2);
    pen.fillStyle = colour;
    for (const [start, stop, name] of layers) {
      const room = (stop - start) * unit;
      const text = [`layer ${name}`, name].find((words) => pen.measureText(words).width < room - 2);
      if (text) pen.fillText(text, ((axis === "rows" ? -1 : 1) * (start + stop) * unit) / 2, -7);
    }
    pen.restore();
  }

  function mark(pen, unitX, unitY, dark) {
    const [extraX, extraY] = [unitX, unitY].map((unit) => Math.max(4, 12 - unit)); // tiny cells get a larger frame
    const box = [cursor.column * unitX - extraX / 2, cursor.row * unitY - extraY / 2, unitX + extraX, unitY + extraY];
    pen.setLineDash([]);
    pen.lineWidth = 3;
    pen.strokeStyle = dark === "0,0,0" ? "white" : "black";
    pen.strokeRect(...box);
    pen.lineWidth = 1.5;
    pen.strokeStyle = `rgb(${dark})`;
    pen.strokeRect(...box);
  }

  function ask() {
    asked = performance.now();
    flow.send({ type: "cell", id: frame.id, ...cursor });
  }

  function showText(message) {
    if (cursor && message.row === cursor.row && message.column === cursor.column) readout.textContent = message.text;
  }

  function moveTo(place) {
    cursor = place;
    layOut();
    if (cursor) ask();
    else readout.textContent = model.get("hint");
  }

  overlay.addEventListener("pointermove", (event) => {
    if (!frame) return;
    const box = pixels.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * frame.columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * frame.rows);
    const isInside = column >= 0 && row >= 0 && column < frame.columns && row < frame.rows;
    if (isInside && (row !== cursor?.row || column !== cursor?.column)) moveTo({ row, column });
  });
  overlay.addEventListener("pointerleave", () => document.activeElement === overlay || moveTo(null));
  overlay.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (event.key === "Escape") moveTo(null);
    if (!frame || !steps) return;
    event.preventDefault();
    event.stopPropagation();
    const now = cursor ?? { row: 0, column: 0 };
    const far = event.shiftKey ? 10 : 1;
    const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
    moveTo({
      row: clamp(now.row + far * steps[0], frame.rows),
      column: clamp(now.column + far * steps[1], frame.columns),
    });
  });

  const resized = new ResizeObserver(layOut);
  resized.observe(root);
  const themed = new MutationObserver(layOut);
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  flow.start();
  return () => {
    resized.disconnect();
    themed.disconnect();
    flow.stop();
  };
}

export default { render };
