// One matrix on the page: its tiles on a canvas, a second canvas over it, and how it is called above.
function createPane(core, parent, sourceOf) {
  const { about, make } = core;
  const stage = make(parent, "div", "ngx-stage");
  const title = make(stage, "div", "ngx-title");
  const pixels = make(stage, "canvas", "ngx-pixels");
  const overlay = make(stage, "canvas", "ngx-overlay");
  overlay.tabIndex = 0;
  overlay.setAttribute("role", "application");
  let [image, ruled, painted, times, found] = [null, "", {}, 0, null];

  // The cells of a level into the image; [tiles that are not there or not new, tiles looked at].
  function paintLevel(level, target) {
    const count = pixels.width;
    const [rows, columns] = core.lens.grid(level, count);
    const [source, reduce, shade] = [sourceOf(), core.lens.reduction(level), core.shade(sourceOf())];
    const [missing, seen] = [[], []];
    for (const down of rows.runs)
      for (const across of columns.runs) {
        const place = { source, reduce, level, i: down.tile, j: across.tile };
        const tile = core.tiles.get(place);
        seen.push(place);
        if (tile?.epoch !== about.epoch) missing.push({ ...place, tile }); // an old one serves until the new one comes
        if (!tile) continue;
        const colours = shade.coloursOf(tile);
        for (let y = down.start; y < down.stop; y++) {
          let at = y * count + across.start;
          if (y > down.start && rows.cell[y] === rows.cell[y - 1]) {
            target.copyWithin(at, at - count, at - count + across.stop - across.start);
            continue;
          }
          const line = rows.cell[y] * tile.columns;
          for (let x = across.start; x < across.stop; x++) target[at++] = colours[line + columns.cell[x]];
        }
      }
    return [missing, seen];
  }

  // As `paintLevel`, on the canvas, if anything changed.
  function paint(level) {
    const now = { key: `${core.lens.key(level)} ${sourceOf()} ${core.arrived} ${about.epoch}`, shade: core.shade(sourceOf()) };
    if (found && painted.key === now.key && painted.shade === now.shade) return found;
    painted = now;
    times++;
    if (image?.width !== pixels.width) image = new ImageData(pixels.width, pixels.width);
    const target = new Uint32Array(image.data.buffer);
    target.fill(0);
    found = paintLevel(level, target);
    if (found[0].some(({ tile }) => !tile)) {
      for (let coarse = about.levels - 1; coarse > level; coarse--) paintLevel(coarse, target);
      found = paintLevel(level, target);
    }
    pixels.getContext("2d").putImageData(image, 0, 0);
    return found;
  }

  // The numbers change with the matrix, the rest does not.
  function rule(level) {
    const { lens, state, size, cursor } = core;
    const numbered = lens.isNumbered(level) && times;
    const drawn = JSON.stringify([level, state, size, cursor, overlay.width, numbered, getComputedStyle(core.root).color]);
    if (drawn === ruled) return;
    ruled = drawn;
    paintOver(overlay.getContext("2d"), core, sourceOf(), level);
  }

  function resize() {
    const ratio = window.devicePixelRatio || 1;
    const { size } = core;
    pixels.width = pixels.height = Math.round(size * ratio);
    [overlay.width, overlay.height] = [Math.round((size + LEFT) * ratio), Math.round((size + TOP) * ratio)];
    Object.assign(pixels.style, { left: `${LEFT}px`, top: `${TOP}px`, width: `${size}px`, height: `${size}px` });
    for (const node of [overlay, stage]) Object.assign(node.style, { width: `${size + LEFT}px`, height: `${size + TOP}px` });
    [ruled, found] = ["", null]; // a canvas of a new size is empty
  }

  function call(name) {
    core.say(title, name ?? "");
    const matrix = name === null ? "Fisher matrix" : name;
    overlay.setAttribute("aria-label", `${matrix}; arrow keys move, plus and minus zoom, Home shows all, w a s d move a cursor`);
  }

  // The place under a pointer.
  function pointed(event) {
    const box = pixels.getBoundingClientRect();
    const place = (axis, offset) => core.lens.from(axis) + (offset / core.size) * core.state.span;
    return { row: place("row", event.clientY - box.top), column: place("column", event.clientX - box.left) };
  }

  return { source: sourceOf, stage, pixels, overlay, paint, rule, resize, call, pointed, remove: () => stage.remove() };
}
