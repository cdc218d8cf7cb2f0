// Over the matrix: rulings between layers and units, labels, numbers in large cells, the cursor. Also into SVG.
const LEFT = 92; // room for labels
const TOP = 40;

function paintOver(pen, core, source, level) {
  const { about, lens, size, space, state } = core;
  const ratio = window.devicePixelRatio || 1;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, size + LEFT, size + TOP);
  const style = getComputedStyle(core.root);
  const room = size / state.span;
  const ink = SCALES[state.scale].signed ? "0,0,0" : "255,255,255";
  [pen.font, pen.fillStyle, pen.lineWidth, pen.textAlign] = [`11px ${style.fontFamily}`, style.color, 1, "start"];
  const at = (axis, index) => (index - lens.from(axis)) * room;
  for (const axis of AXES) {
    ruleAxis(pen, core, axis, at, ink);
    labelAxis(pen, core, axis, at);
  }
  if (lens.isNumbered(level)) paintNumbers(pen, core, source, at);
  if (core.cursor && lens.holds({ row: core.cursor.row + 0.5, column: core.cursor.column + 0.5 })) {
    const [[top, bottom], [left, right]] = AXES.map((axis) => {
      const cell = space.cellAt(level, core.cursor[axis]);
      return [at(axis, space.edge(level, cell)), at(axis, space.edge(level, cell + 1))];
    });
    [pen.strokeStyle, pen.lineWidth] = [`rgb(${ink})`, 1.5];
    const [h, w] = [Math.max(6, bottom - top), Math.max(6, right - left)];
    pen.strokeRect(LEFT + (left + right - w) / 2, TOP + (top + bottom - h) / 2, w, h);
    pen.lineWidth = 1;
  }
}

function ruleAxis(pen, core, axis, at, ink) {
  const { about, lens, size, space, state } = core;
  const across = axis === "column" ? "row" : "column";
  const [begin, end] = [Math.max(0, at(across, 0)), Math.min(size, at(across, about.dim))];
  const line = (index, strength) => {
    const place = at(axis, index);
    pen.strokeStyle = `rgba(${ink},${strength})`;
    pen.beginPath();
    if (axis === "column") [pen.moveTo(LEFT + place, TOP + begin), pen.lineTo(LEFT + place, TOP + end)];
    else [pen.moveTo(LEFT + begin, TOP + place), pen.lineTo(LEFT + end, TOP + place)];
    pen.stroke();
  };
  const [low, high] = [Math.max(0, lens.from(axis)), Math.min(about.dim, lens.from(axis) + state.span)];
  for (const layer of space.layers) {
    const stop = layer.start + layer.units * layer.width;
    if (layer.start > high || stop < low) continue;
    if (layer.rows && (layer.width * size) / state.span >= 9)
      for (let unit = Math.max(1, Math.ceil((low - layer.start) / layer.width)); unit < layer.units; unit++) {
        const index = layer.start + unit * layer.width;
        if (index > high) break;
        line(index, 0.3);
      }
    if (layer.start > 0 && layer.start >= low) line(layer.start, 0.9);
  }
}

function labelAxis(pen, core, axis, at) {
  const { about, lens, size, space, state } = core;
  const room = size / state.span;
  const [low, high] = [Math.max(0, lens.from(axis)), Math.min(about.dim, lens.from(axis) + state.span)];
  let [free, shown] = [-Infinity, 0];
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
  if (shown) return;
  const text = `in ${space.name(lens.within(low))} …`;
  if (axis === "column") pen.fillText(text, LEFT, TOP - 10);
  else pen.fillText(text, 2, TOP + 9, LEFT - 6);
}

function paintNumbers(pen, core, source, at) {
  const { lens, size, state } = core;
  const room = size / state.span;
  const shade = core.shade(source);
  const short = (value) => (value === 0 ? "0" : Math.abs(value) < 0.01 || Math.abs(value) >= 1000 ? value.toExponential(1) : value.toPrecision(3));
  const [[top, bottom], [left, right]] = AXES.map(lens.ends);
  pen.textAlign = "center";
  for (let i = top; i < bottom; i++)
    for (let j = left; j < right; j++) {
      const [x, y] = [at("column", j), at("row", i)];
      const cell = x > -2 && x + room < size + 2 && y > -room / 3 && y + room * 0.7 < size && lens.valueAt(source, 0, i, j);
      if (!cell) continue;
      const pixel = shade.coloursOf(cell.tile)[cell.at];
      if (pixel) pen.fillStyle = isDark(pixel) ? "white" : "black";
      pen.fillText(short(cell.value), LEFT + x + room / 2, TOP + y + room / 2 + 4, room - 4);
    }
  pen.textAlign = "start";
}
