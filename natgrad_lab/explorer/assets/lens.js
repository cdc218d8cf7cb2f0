// Where the reader looks: a square of `span` parameters a side around (row, column), the same in every pane.
const SMALLEST_CELL = 2; // pixels
const FEWEST = 4; // parameters a side
const AXES = ["row", "column"];

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

function createLens(core) {
  const { about, state } = core;
  const from = (axis) => state[axis] - state.span / 2;
  const within = (index) => clamp(Math.floor(index), 0, about.dim - 1);
  let cached = { key: "" };

  // The finest level whose cells can still be seen.
  function level() {
    const wanted = Math.max(8, core.size / SMALLEST_CELL);
    for (let level = about.finest || 0; level < about.levels; level++) {
      const counts = AXES.map((axis) => {
        const [a, b] = [within(from(axis)), clamp(Math.ceil(from(axis) + state.span), 1, about.dim) - 1];
        return core.space.cellAt(level, b) - core.space.cellAt(level, a) + 1;
      });
      if (Math.max(...counts) <= wanted) return level;
    }
    return about.levels - 1;
  }

  // Per pixel the cell of its tile, and runs of pixels in one tile.
  function places(axis, level, count) {
    const [cell, runs] = [new Int32Array(count), []];
    const [start, step] = [from(axis), state.span / count];
    let [stop, now] = [-1, 0];
    for (let k = 0; k < count; k++) {
      const index = Math.floor(start + (k + 0.5) * step);
      if (index < 0 || index >= about.dim) continue;
      if (index >= stop) {
        now = core.space.cellAt(level, index);
        stop = core.space.edge(level, now + 1);
      }
      const tile = Math.floor(now / about.tile);
      cell[k] = now % about.tile;
      const last = runs[runs.length - 1];
      if (last && last.stop === k && last.tile === tile) last.stop++;
      else runs.push({ tile, start: k, stop: k + 1 });
    }
    return { cell, runs };
  }

  const key = (level) => `${state.row} ${state.column} ${state.span} ${level} ${reduction(level)}`;

  // Both axes; while nobody moves, as worked out before.
  function grid(level, count) {
    const now = `${state.row} ${state.column} ${state.span} ${count}`;
    if (cached.key !== now || cached.space !== core.space) cached = { key: now, space: core.space, levels: [] };
    return (cached.levels[level] ??= AXES.map((axis) => places(axis, level, count)));
  }

  function settle() {
    state.span = clamp(state.span, Math.min(FEWEST, about.dim), about.dim);
    const half = state.span / 2;
    for (const axis of AXES) state[axis] = clamp(state[axis], half, about.dim - half);
  }

  function zoom(factor, at = null) {
    const span = clamp(state.span * factor, Math.min(FEWEST, about.dim), about.dim);
    for (const axis of AXES) if (at) state[axis] = at[axis] + (state[axis] - at[axis]) * (span / state.span);
    state.span = span;
    core.changed();
  }

  function goTo([rows, columns]) {
    const middle = (part) => (part[0] + part[1]) / 2;
    const most = Math.max(rows[1] - rows[0], columns[1] - columns[0]);
    Object.assign(state, { row: middle(rows), column: middle(columns), span: most === 1 ? 12 : most * 1.04 });
    core.cursor = { row: rows[0], column: columns[0] };
    core.changed();
  }

  function stepCursor(axis, by) {
    const at = level();
    core.cursor ??= { row: within(state.row), column: within(state.column) };
    const cell = clamp(core.space.cellAt(at, core.cursor[axis]) + by, 0, core.space.grid(at).count - 1);
    core.cursor = { ...core.cursor, [axis]: core.space.edge(at, cell) };
    const away = core.cursor[axis] - state[axis];
    if (Math.abs(away) > state.span / 2) state[axis] += away;
  }

  const holds = (at) => AXES.every((axis) => at[axis] >= 0 && at[axis] < about.dim && Math.abs(at[axis] - state[axis]) <= state.span / 2);
  const ends = (axis) => [Math.max(0, Math.floor(from(axis))), Math.min(about.dim, Math.ceil(from(axis) + state.span))];
  const isNumbered = (level) => level === 0 && core.size / state.span >= 44;
  const reduction = (level) => {
    const scale = SCALES[state.scale];
    return level > 0 ? scale.reduce : scale.limits ? "correlations" : "entries";
  };

  // What is known at a place of a matrix.
  function valueAt(source, level, row, column) {
    const [i, j] = [core.space.cellAt(level, row), core.space.cellAt(level, column)];
    const place = { source, reduce: reduction(level), level, i: Math.floor(i / about.tile), j: Math.floor(j / about.tile) };
    const tile = core.tiles.get(place);
    if (!tile) return null;
    const at = (i % about.tile) * tile.columns + (j % about.tile);
    return { tile, at, value: tile.values[at] };
  }

  return { from, within, level, key, grid, settle, zoom, goTo, stepCursor, holds, ends, isNumbered, reduction, valueAt };
}
