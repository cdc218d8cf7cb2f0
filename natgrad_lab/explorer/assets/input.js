// Wheel, drag, double click, pointing and keys on a pane; all of them move what every pane shows.
const MOVES = { ArrowLeft: ["column", -1], ArrowRight: ["column", 1], ArrowUp: ["row", -1], ArrowDown: ["row", 1] };
const STEPS = { a: ["column", -1], d: ["column", 1], w: ["row", -1], s: ["row", 1] };

function listen(core, pane) {
  const { lens, state } = core;
  const { overlay, pointed } = pane;
  let dragged = null;
  overlay.addEventListener("wheel", (event) => {
    event.preventDefault();
    lens.zoom(2 ** clamp(event.deltaY / (event.deltaMode ? 6 : 240), -1, 1), pointed(event));
  }, { passive: false });
  overlay.addEventListener("dblclick", (event) => lens.zoom(0.4, pointed(event)));
  overlay.addEventListener("pointerdown", (event) => {
    overlay.setPointerCapture(event.pointerId);
    dragged = pointed(event);
  });
  overlay.addEventListener("pointerup", () => (dragged = null));
  overlay.addEventListener("pointercancel", () => (dragged = null));
  overlay.addEventListener("pointermove", (event) => {
    if (dragged) {
      const to = pointed(event);
      for (const axis of AXES) state[axis] += dragged[axis] - to[axis];
      core.changed();
    }
    const at = pointed(event);
    core.cursor = lens.holds(at) ? { row: Math.floor(at.row), column: Math.floor(at.column) } : null;
    core.redraw();
  });
  overlay.addEventListener("pointerleave", () => {
    if (document.activeElement !== overlay) core.cursor = null;
    core.redraw();
  });
  overlay.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (!pressed(event)) return;
    event.preventDefault();
    event.stopPropagation();
    core.changed();
  });

  function pressed({ key, shiftKey }) {
    const [move, step] = [MOVES[key], STEPS[key]];
    if (move) state[move[0]] += move[1] * state.span * (shiftKey ? 0.5 : 0.1);
    else if (step) lens.stepCursor(...step);
    else if (key === "+" || key === "=") lens.zoom(0.7);
    else if (key === "-") lens.zoom(1 / 0.7);
    else if (key === "Home") state.span = core.about.dim;
    else if (key === "Escape") core.cursor = null;
    else return false;
    return true;
  }
}
