// The zoomable matrix, or two of them side by side: the state, and what happens when it or the matrix changes.
// `host.request(tiles, shown)` asks for tiles; whoever has one calls viewer.receive, in any order, at any time.
const EACH = 1000; // ms between two spectra of a training, or ten times what one takes, but
const MOST_EACH = 10000; // at most this
const SLOW = 500; // ms after which the reader is told that something is computed
const SILENT = 10000; // ms after which the kernel may have stopped
const AGAIN = 4000; // ms after which what did not come is asked for again
const WIDE = 820; // pixels from which panes and numbers are side by side
const BESIDE = 320; // pixels for the numbers beside one pane

function createViewer(root, about, tables, host) {
  const make = (parent, tag, kind, text = "") => {
    const node = document.createElement(tag);
    node.className = kind;
    node.textContent = text;
    parent.appendChild(node);
    return node;
  };
  about.epoch ??= 0;
  const state = {
    row: about.dim / 2, column: about.dim / 2, span: about.dim, source: about.sources[0], compare: "", same: true, scale: "log",
    ...about.arrangement,
  };
  const core = {
    about, host, make, root, state, tiles: createTiles(), space: geometry(about), panes: [],
    size: 0, cursor: null, arrived: 0, pending: false,
    wished: { source: null, compare: null }, // what cannot be shown now, but then it shall be
    changed, recolour, redraw, say, note, shade, symbol, isOneKind, tell,
  };
  const lens = (core.lens = createLens(core));

  root.classList.add("natgrad-explorer");
  root.dataset.lmSuppressShortcuts = "true";
  const controls = createControls(core);
  const status = make(root, "div", "ngx-status");
  const lacking = make(root, "div", "ngx-lacking ngx-small");
  const problem = make(root, "div", "ngx-problem");
  problem.setAttribute("role", "alert");
  const body = make(root, "div", "ngx-body");
  const stages = make(body, "div", "ngx-stages");
  const side = make(body, "div", "ngx-side");
  const beside = make(side, "div", "ngx-beside");
  const map = createMap(core, beside);
  const keys = [createKey(core, beside), createKey(core, beside)];
  const read = createReadout(core, side);
  const panel = createPanel(side, make, damp);

  let [queued, asked, askedAt, drawn, complete] = [false, "", 0, 0, -1];
  let [analysed, analysedAt, analysisTook, damping, waitingSince] = [-1, -Infinity, 0, 0, null];
  const shades = new Map();

  // ---- colours

  function ownLimits(source) {
    return SCALES[state.scale].limits || about.limits[source] || about.limits[about.sources[0]] || [1e-3, 1];
  }

  function limitsOf(source) {
    if (!state.compare || !state.same || !isOneKind()) return ownLimits(source);
    const [one, two] = [state.source, state.compare].map(ownLimits);
    return one[1] >= two[1] ? one : two;
  }

  function shade(source) {
    const limits = limitsOf(source);
    const key = `${state.scale} ${limits}`;
    if (!shades.has(key)) {
      if (shades.size > 8) shades.clear();
      shades.set(key, createShade(SCALES[state.scale], limits, tables[SCALES[state.scale].colours]));
    }
    return shades.get(key);
  }

  // Whether both panes show numbers of one kind; a Fisher and an inverse have other units.
  function isOneKind() {
    return state.source.startsWith("inverse") === state.compare.startsWith("inverse");
  }

  function symbol(source) {
    const matrix = (source === "exact" ? "F" : source) + (state.white ? " in white coordinates" : "");
    return SCALES[state.scale].limits ? `correlation in ${matrix}` : matrix;
  }

  // ---- drawing

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

  function draw() {
    queued = false;
    if (!core.size) return;
    const level = lens.level();
    const found = core.panes.map((pane) => pane.paint(level));
    const [missing, seen] = [0, 1].map((n) => found.flatMap((each) => each[n]));
    const { pixels } = core.panes[0];
    note(pixels, "level", level);
    note(pixels, "missing", missing.length);
    pixels.dataset.drawn = ++drawn;
    if (!missing.length && complete !== about.epoch) {
      complete = about.epoch; // every tile of this matrix that the view needs is on screen
      root.dataset.frames = complete;
      host.painted?.(complete);
    }
    if (missing.length) waitingSince ??= performance.now();
    else waitingSince = null;
    tellWork();
    if (!missing.length) analyse();
    ask(level, missing, seen);
    for (const pane of core.panes) pane.rule(level);
    map.draw(!missing.length);
    read(level, core.panes.map((pane) => pane.source()));
  }

  function ask(level, missing, seen) {
    const text = missing.map(({ source, reduce, i, j }) => `${source} ${reduce} ${level} ${i} ${j}`).join(";");
    const old = performance.now() - askedAt > AGAIN;
    if (!missing.length || (text === asked && !old)) return;
    [asked, askedAt] = [text, performance.now()];
    const middle = AXES.map((axis) => core.space.cellAt(level, lens.within(state[axis])) / about.tile - 0.5);
    const far = ({ i, j }) => (i - middle[0]) ** 2 + (j - middle[1]) ** 2;
    host.request(missing.sort((a, b) => far(a) - far(b)), seen);
    setTimeout(redraw, AGAIN + 50);
  }

  // What did not change is not written: every write lays out the whole notebook again.
  function say(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }
  function note(node, name, value) {
    if (node.dataset[name] !== String(value)) node.dataset[name] = value;
  }
  function tell(text) {
    say(problem, text);
  }

  function tellWork() {
    const waited = waitingSince === null ? 0 : performance.now() - waitingSince;
    let text = "";
    if (core.pending) text = "computing another arrangement …";
    else if (waited > SILENT) text = `no answer for ${Math.round(waited / 1000)} s: still computing, or the kernel has stopped`;
    else if (waited > SLOW && !problem.textContent) text = "computing …";
    say(status, text);
    if (waitingSince !== null && waited <= SLOW) setTimeout(redraw, SLOW);
  }

  function analyse() {
    if (!host.analyse || analysed === about.epoch) return;
    const wait = analysedAt + (about.live ? Math.max(EACH, 10 * analysisTook) : 0) - performance.now();
    if (wait > 0) return void setTimeout(redraw, wait + 10);
    [analysed, analysedAt] = [about.epoch, performance.now()];
    host.analyse();
  }

  // ---- changes

  function changed() {
    lens.settle();
    host.moved?.({ ...state });
    redraw();
  }

  function recolour() {
    if (panesNow() !== core.panes.length) layOut();
    const two = core.panes.length > 1;
    core.panes.forEach((pane) => pane.call(two ? symbol(pane.source()) : null));
    keys[0].show(shade(state.source), two && shade(state.source) === shade(state.compare) ? "both" : symbol(state.source));
    keys[1].show(two && shade(state.source) !== shade(state.compare) ? shade(state.compare) : null, symbol(state.compare));
    controls.show();
    changed();
  }

  function damp(value) {
    state.damping = value;
    clearTimeout(damping);
    damping = setTimeout(() => host.arrange?.({ damping: value }), 80);
    host.moved?.({ ...state });
  }

  const panesNow = () => (state.compare ? 2 : 1);

  function layOut() {
    const sources = [() => state.source, () => state.compare];
    while (core.panes.length > panesNow()) core.panes.pop().remove();
    while (core.panes.length < panesNow()) {
      const pane = createPane(core, stages, sources[core.panes.length]);
      listen(core, pane);
      core.panes.push(pane);
    }
    const room = root.clientWidth;
    if (!room) return;
    const [wide, two] = [room >= WIDE, core.panes.length > 1];
    body.classList.toggle("ngx-narrow", !wide);
    body.classList.toggle("ngx-two", two);
    const across = wide && two ? (room - 16) / 2 : room - (wide ? BESIDE : 4);
    core.size = Math.floor(Math.max(160, Math.min(about.side || 620, across - LEFT)));
    for (const pane of core.panes) pane.resize();
    panel.draw();
    redraw();
  }

  // Matrices that there are; one that went is wished for, until it can be shown again.
  function choose() {
    const { wished } = core;
    const leftOut = Object.entries(about.left_out ?? {});
    const [reason] = leftOut.map(([, text]) => text);
    say(lacking, leftOut.length ? `Without ${leftOut.map(([name]) => name).join(", ")}: ${reason}.` : "");
    for (const [which, instead] of [["source", about.sources[0]], ["compare", ""]]) {
      if (about.sources.includes(wished[which])) [state[which], wished[which]] = [wished[which], null];
      if (about.sources.includes(state[which]) || (which === "compare" && !state.compare)) continue;
      const isLeftOut = leftOut.some(([name]) => state[which].includes(name));
      if (!isLeftOut) tell(`There is no matrix “${state[which]}” here. There are: ${about.sources.join(", ")}.`);
      [wished[which], state[which]] = [state[which], instead];
    }
  }

  const resized = new ResizeObserver(layOut);
  resized.observe(root);
  layOut();
  choose();
  recolour();
  panel.damp(state.damping);

  return {
    limit(newLimits) {
      const changes = Object.entries(newLimits).filter(([name, pair]) => String(pair) !== String(about.limits[name]));
      Object.assign(about.limits, newLimits);
      if (changes.some(([name]) => name === state.source || name === state.compare)) recolour();
    },
    rearrange(given, places) {
      const moved = places || about.places; // cells of another shape
      Object.assign(about, given, { places, limits: about.limits });
      core.space = geometry(about);
      if (moved) core.tiles.clear();
      core.arrived++;
      controls.list();
      choose();
      this.arranged(given.arrangement);
    },
    arranged(arrangement) {
      const sliding = state.damping;
      Object.assign(state, arrangement);
      if (sliding !== state.damping) panel.damp(state.damping);
      core.pending = false;
      Object.assign(root.dataset, { order: state.order, white: state.white });
      core.cursor = null;
      recolour();
    },
    analysed(analysis) {
      analysisTook = Math.min(performance.now() - analysedAt, MOST_EACH / 10);
      panel.take(analysis);
    },
    receive(place, rows, columns, values) {
      core.tiles.put(place, { values, rows, columns, epoch: about.epoch, shade: null, colours: null });
      core.arrived++;
      redraw();
    },
    renew(epoch, newLimits) {
      about.epoch = epoch;
      asked = "";
      map.forget();
      this.limit(newLimits);
      redraw();
    },
    show(given) {
      for (const name of ["row", "column", "span"]) if (Number.isFinite(given[name])) state[name] = given[name];
      for (const name of ["source", "compare"]) if (typeof given[name] === "string" && given[name]) state[name] = given[name];
      if (SCALES[given.scale]) state.scale = given.scale;
      if (typeof given.same === "boolean") state.same = given.same;
      if (given.damping > 0) state.damping = given.damping;
      choose();
      panel.damp(state.damping);
      recolour();
    },
    complain(text, dear) {
      tell(text);
      const means = dear && { log: "signedlog", magnitude: "signed", correlationsize: "correlation" }[state.scale];
      if (!means) return;
      tell(`${text} Now shown: ${SCALES[means].label}.`);
      state.scale = means;
      recolour();
    },
    jump: controls.jump,
    state,
    get space() {
      return core.space;
    },
    close: () => resized.disconnect(),
  };
}
