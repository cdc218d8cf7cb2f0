// The bar above the panes: matrices, colours, white coordinates, search, zoom, and under "more" the order and what can be saved.
const ORDERS = [["layer", "layer"], ["unit", "unit, by its share of the trace"], ["eigenvector", "leading eigenvector"]];

function createControls(core) {
  const { about, host, lens, make, root, state } = core;
  const bar = make(root, "div", "ngx-bar");
  const problem = () => core.tell("");

  const choose = (name, label, options, where, act) => {
    const holder = make(where, "label", "", `${label} `);
    const menu = make(holder, "select", "");
    menu.dataset.menu = name;
    for (const [value, text] of options) make(menu, "option", "", text).value = value;
    menu.addEventListener("change", () => act(menu.value));
    return menu;
  };
  const button = (text, title, act, where) => {
    const node = make(where, "button", "", text);
    Object.assign(node, { type: "button", title });
    node.setAttribute("aria-label", title);
    node.addEventListener("click", act);
    return node;
  };
  // A choice of the reader's.
  const set = (change) => {
    problem();
    Object.assign(state, change);
    for (const which of Object.keys(change)) core.wished[which] = null;
    core.recolour();
  };

  const sourceMenu = choose("matrix", "matrix", [], bar, (source) => set({ source }));
  const compareMenu = choose("compare", "compare with", [], bar, (compare) => set({ compare }));
  const sameHolder = make(bar, "label", "ngx-same");
  const same = make(sameHolder, "input", "");
  same.type = "checkbox";
  sameHolder.append(" same colours");
  sameHolder.title = "one scale of colours for both, that of the larger; off: each its own";
  same.addEventListener("change", () => set({ same: same.checked }));
  const scales = Object.entries(SCALES).filter(([name]) => !about.scales || about.scales.includes(name));
  const scaleMenu = choose("colours", "colours", scales.map(([name, scale]) => [name, scale.label]), bar, (scale) => set({ scale }));
  const whiten = button("Whiten inputs", "PRONG's coordinates: every layer's inputs white; again for before", () => arrange({ white: !state.white }), bar);
  Object.assign(whiten, { className: "ngx-whiten", hidden: !host.arrange });

  const search = make(bar, "span", "ngx-search");
  const words = make(search, "input", "");
  Object.assign(words, { type: "search", placeholder: "W2[3,5] x W1[0,2]" });
  words.setAttribute("aria-label", "jump to a parameter or a block");
  const go = make(search, "button", "", "Go");
  go.type = "button";
  go.addEventListener("click", () => jump(words.value));
  words.addEventListener("keydown", (event) => {
    event.stopPropagation(); // a notebook has its own meaning for letters and Enter
    if (event.key === "Enter") jump(words.value);
  });
  const buttons = make(bar, "span", "ngx-buttons");
  button("+", "zoom in", () => lens.zoom(0.5), buttons);
  button("−", "zoom out", () => lens.zoom(2), buttons);
  button("All", "show the whole matrix", () => lens.zoom(Infinity), buttons);
  const more = make(root, "details", "ngx-more");
  make(more, "summary", "", "more");
  const rest = make(more, "div", "ngx-bar");
  const orderMenu = choose("order", "sort by", ORDERS, rest, (order) => arrange({ order }));
  orderMenu.parentNode.hidden = !host.arrange;
  createSaves(core, make(rest, "span", "ngx-buttons"), button);

  function arrange(change) {
    problem();
    Object.assign(state, change);
    core.pending = true;
    core.recolour();
    host.arrange(change);
  }

  function jump(text) {
    try {
      const found = core.space.find(text);
      problem();
      lens.goTo(found);
    } catch (error) {
      core.tell(error.message);
    }
  }

  // What cannot be shown now stays in the menus, with the reason.
  function list() {
    const leftOut = Object.entries(about.left_out ?? {});
    for (const [menu, first] of [[sourceMenu, []], [compareMenu, [["", "nothing"]]]]) {
      menu.replaceChildren();
      for (const [value, text] of [...first, ...about.sources.map((name) => [name, name])]) make(menu, "option", "", text).value = value;
      for (const [name, reason] of leftOut) {
        const option = make(menu, "option", "", `${name} (not now: ${reason})`);
        Object.assign(option, { value: name, disabled: true, title: reason });
      }
    }
  }

  function show() {
    [sourceMenu.value, compareMenu.value, scaleMenu.value, orderMenu.value] = [state.source, state.compare, state.scale, state.order];
    sameHolder.hidden = !state.compare || !core.isOneKind() || Boolean(SCALES[state.scale].limits);
    same.checked = state.same;
    whiten.setAttribute("aria-pressed", state.white);
  }
  list();
  return { list, show, jump };
}
