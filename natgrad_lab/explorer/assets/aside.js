// Beside the panes: a map of the whole, a key of the colours, and the value under the pointer.
const MAP_EVERY = 500; // ms between two maps of a matrix in training
const MAP_SIDE = 130;

function createMap(core, parent) {
  const { about, state } = core;
  const map = core.make(parent, "canvas", "ngx-map");
  map.title = "the whole matrix; the frame is what is shown";
  map.width = map.height = MAP_SIDE;
  const image = new ImageData(MAP_SIDE, MAP_SIDE);
  const out = new Uint32Array(image.data.buffer);
  let [framed, painted, paintedAt, asked, later] = ["", null, -Infinity, "", null];
  map.addEventListener("pointerdown", (event) => {
    const box = map.getBoundingClientRect();
    state.column = ((event.clientX - box.left) / box.width) * about.dim;
    state.row = ((event.clientY - box.top) / box.height) * about.dim;
    core.changed();
  });

  // Tiles that are not there.
  function paint(shade, level) {
    const reduce = core.lens.reduction(level);
    const [found, wanted] = [new Map(), []];
    const tileAt = (i, j) => {
      const at = i * 4096 + j;
      if (!found.has(at)) {
        const place = { source: state.source, reduce, level, i, j };
        const tile = core.tiles.get(place);
        if (tile?.epoch !== about.epoch) wanted.push(place);
        found.set(at, tile && { colours: shade.coloursOf(tile), columns: tile.columns });
      }
      return found.get(at);
    };
    const cells = Array.from({ length: MAP_SIDE }, (_, k) => core.space.cellAt(level, Math.floor(((k + 0.5) * about.dim) / MAP_SIDE)));
    const tiles = cells.map((cell) => Math.floor(cell / about.tile));
    for (let y = 0; y < MAP_SIDE; y++) {
      const start = y * MAP_SIDE;
      if (y && cells[y] === cells[y - 1]) {
        out.copyWithin(start, start - MAP_SIDE, start);
        continue;
      }
      for (let x = 0; x < MAP_SIDE; x++) {
        const one = tileAt(tiles[y], tiles[x]);
        out[start + x] = one ? one.colours[(cells[y] % about.tile) * one.columns + (cells[x] % about.tile)] : 0;
      }
    }
    return wanted;
  }

  function draw(isComplete) {
    const shade = core.shade(state.source);
    const now = `${state.source} ${about.epoch} ${core.arrived}`;
    const isEarly = about.live && performance.now() - paintedAt < MAP_EVERY;
    const isOld = painted?.now !== now;
    const due = painted?.shade !== shade || (isOld && !isEarly);
    if (isOld && !due)
      later ??= setTimeout(() => {
        later = null;
        core.redraw();
      }, MAP_EVERY);
    if (due) {
      const level = about.levels - 1;
      const wanted = paint(shade, level);
      [painted, paintedAt] = [{ shade, now }, performance.now()];
      const question = `${about.epoch} ${state.source} ${state.scale}`;
      if (!isComplete && wanted.length) painted.now = ""; // asked for when the panes have theirs
      else if (wanted.length && asked !== question) {
        asked = question;
        core.host.request(wanted, null);
      }
    }
    const frame = `${state.row} ${state.column} ${state.span}`;
    if (!due && frame === framed) return;
    framed = frame;
    const pen = map.getContext("2d");
    pen.putImageData(image, 0, 0);
    [pen.strokeStyle, pen.lineWidth] = ["#ff2d95", 2];
    const room = MAP_SIDE / about.dim;
    const side = Math.max(5, state.span * room);
    pen.strokeRect(state.column * room - side / 2, state.row * room - side / 2, side, side);
  }
  return { draw, forget: () => (asked = "") };
}

function createKey(core, parent) {
  const key = core.make(parent, "div", "ngx-key");
  const ramp = core.make(key, "canvas", "ngx-ramp");
  [ramp.width, ramp.height] = [256, 1];
  const ends = core.make(key, "div", "ngx-ends");
  const texts = [0, 1, 2].map(() => core.make(ends, "span", ""));
  const caption = core.make(key, "div", "ngx-small");
  return {
    show(shade, name) {
      key.hidden = !shade;
      if (!shade) return;
      const { scale } = shade;
      const ramped = new ImageData(256, 1);
      new Uint32Array(ramped.data.buffer).set(shade.table);
      ramp.getContext("2d").putImageData(ramped, 0, 0);
      const [low, high] = [shade.low, shade.high].map((value) => value.toExponential(1));
      const shown = scale.signed ? [`−${high}`, scale.log ? `±${low}` : "0", high] : [scale.log ? low : "0", "", high];
      shown.forEach((text, n) => core.say(texts[n], text));
      const kind = scale.signed ? "mean" : "root mean square";
      core.say(caption, `${name}, ${scale.log ? "logarithmic" : "linear"}. A cell of many entries shows their ${kind}.`);
    },
  };
}

function createReadout(core, parent) {
  const HINT = "Wheel or + and − zoom, drag or arrow keys move, point to read an entry.";
  const { state } = core;
  const readout = core.make(parent, "div", "ngx-readout", HINT);
  readout.setAttribute("aria-live", "polite");

  function span(axis, level) {
    const { cursor, space } = core;
    const number = space.cellAt(level, cursor[axis]);
    const [a, b] = [space.edge(level, number), space.edge(level, number + 1)];
    return [b - a, b - a === 1 ? space.name(a) : `${space.name(a)} … ${space.name(b - 1)}`];
  }

  return function read(level, sources) {
    if (!core.cursor) return core.say(readout, HINT);
    const [[height, one], [width, two]] = AXES.map((axis) => span(axis, level));
    const single = height * width === 1;
    const { signed } = SCALES[state.scale];
    const values = sources.map((source) => core.lens.valueAt(source, level, core.cursor.row, core.cursor.column)?.value);
    const text = (value) => (value === undefined ? "…" : value.toPrecision(6));
    const how = `${signed ? "mean" : "root mean square"} of ${(height * width).toLocaleString("en")} entries`;
    let said = `${one} × ${two}: ${single ? core.symbol(sources[0]) : how} = ${text(values[0])}`;
    if (sources.length > 1) {
      said = `${one} × ${two}: ${single ? "" : `${how}: `}${sources.map((source, n) => `${core.symbol(source)} = ${text(values[n])}`).join(", ")}`;
      const bothThere = values.every((value) => value !== undefined);
      if (bothThere && (single || signed) && core.isOneKind()) said += `, first − second = ${text(values[0] - values[1])}`;
    }
    core.say(readout, said);
    core.note(readout, "value", text(values[0]));
    if (sources.length > 1) core.note(readout, "second", text(values[1]));
  };
}
