// Cards in a page without a kernel. Each section's JSON holds figure and headline of the states that can be shown.
(function () {
  "use strict";

  function make(parent, tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text; // never HTML: words of cards and readers are only words
    parent.appendChild(node);
    return node;
  }

  const store = {
    key: (name) => `natgrad-prediction-${name}`,
    get(name) {
      try {
        return JSON.parse(localStorage.getItem(this.key(name)));
      } catch {
        return null; // no storage here, or not ours
      }
    },
    keep(name, said) {
      const before = this.get(name);
      if (before !== null) return before; // the first prediction stays
      try {
        localStorage.setItem(this.key(name), JSON.stringify(said));
      } catch {
        // kept for this visit only
      }
      return said;
    },
  };

  function readNumber(text) {
    const plain = text.trim().replace("−", "-").replace(/ /g, "").replace(/[%°]+$/, "").replace(",", ".");
    const parts = plain.split("/");
    const numbers = parts.map((part) => (part === "" ? NaN : Number(part)));
    const number = parts.length === 1 ? numbers[0] : parts.length === 2 ? numbers[0] / numbers[1] : NaN;
    return Number.isFinite(number) ? number : null;
  }

  const short = (number) => String(Number(number.toPrecision(3)));

  function saidText(card, said) {
    if (said === null) return "";
    if (card.options) return `You said: ${said}. ${said === card.answer ? "Right." : "It is otherwise."}`;
    if (typeof said !== "number") return `You said: ${said}.`;
    const distance = card.answer ? Math.abs(said - card.answer) / Math.abs(card.answer) : Math.abs(said);
    return `You said: ${`${short(said)} ${card.unit}`.trim()}.${distance <= 0.1 ? " That is close." : ""}`;
  }

  function nearest(card, wanted, moved) {
    const sizes = card.controls.map((control) => control.values.length);
    let best = null;
    for (const place of Object.keys(card.states)) {
      const at = place.split("-").map(Number);
      let distance = 0;
      at.forEach((value, k) => {
        if (value === wanted[k]) return;
        const step = card.controls[k].kind === "slider" ? Math.abs(value - wanted[k]) / (sizes[k] - 1) : 1;
        distance += k === moved ? 100 + step : step; // what was just moved stays, if any held state has it
      });
      if (best === null || distance < best.distance) best = { distance, at };
    }
    return best.at;
  }

  function start(root) {
    const card = JSON.parse(root.querySelector("script").textContent);
    const controls = [];
    let current = card.controls.map((control) => control.default);
    let plot = null;
    let parts = null;

    make(root, "h3", "natgrad-card-title", card.title);
    make(root, "p", "natgrad-card-message", card.message);

    function ask() {
      const box = make(root, "div", "natgrad-card-predict");
      const question = make(box, "p", "natgrad-card-question");
      make(question, "span", "natgrad-card-tag", "Predict first");
      make(question, "span", "", ` ${card.question}`);
      let read;
      if (card.options) {
        const group = make(box, "div", "natgrad-card-options");
        group.setAttribute("role", "radiogroup");
        group.setAttribute("aria-label", card.question);
        const inputs = card.options.map((option) => {
          const label = make(group, "label");
          const input = make(label, "input");
          Object.assign(input, { type: "radio", name: `natgrad-${card.name}`, value: option });
          make(label, "span", "", option);
          return input;
        });
        read = () => inputs.find((input) => input.checked)?.value ?? null;
      } else {
        const label = make(box, "label", "natgrad-card-row");
        const input = make(label, "input");
        Object.assign(input, { type: "text", placeholder: "a number", inputMode: "decimal" });
        input.setAttribute("aria-label", card.question);
        make(label, "span", "", card.unit);
        input.addEventListener("keydown", (event) => event.key === "Enter" && commit.click());
        read = () => readNumber(input.value);
      }
      const buttons = make(box, "div", "natgrad-card-row");
      const commit = make(buttons, "button", "natgrad-card-main", "Commit");
      const showMe = make(buttons, "button", "", "Show me");
      const note = make(box, "p", "natgrad-note");
      note.setAttribute("role", "status");
      commit.addEventListener("click", () => {
        const said = read();
        if (said === null) {
          note.textContent = card.options ? "Choose one first, or press Show me." : "Type a number such as 12, 0.5 or 1e-3.";
          return;
        }
        box.remove();
        reveal(store.keep(card.name, said));
      });
      showMe.addEventListener("click", () => {
        box.remove();
        reveal(null);
      });
    }

    function reveal(said) {
      const answer = make(root, "div", "natgrad-card-answer");
      make(answer, "p", "natgrad-card-asked", card.question);
      const line = make(answer, "p");
      make(line, "b", "", card.answer_text);
      make(line, "span", "natgrad-card-said", ` ${saidText(card, said)}`);
      make(answer, "p", "", card.explanation);
      addControls(make(root, "div", "natgrad-card-row natgrad-card-controls"));
      const presets = make(root, "div", "natgrad-card-row natgrad-card-presets");
      make(presets, "span", "natgrad-quiet", "set:");
      for (const [name, place] of Object.entries(card.presets)) {
        make(presets, "button", "", name).addEventListener("click", () => moveTo(place.split("-").map(Number), null));
      }
      const note = make(root, "p", "natgrad-note");
      note.setAttribute("role", "status");
      const status = make(root, "div");
      status.setAttribute("role", "status");
      const number = make(status, "span", "natgrad-card-headline natgrad-number");
      make(status, "span", "", " ");
      const what = make(status, "span", "natgrad-card-what");
      plot = make(root, "div", "natgrad-plot");
      plot.setAttribute("role", "img");
      make(root, "p", "natgrad-card-caption", card.caption);
      const again = make(root, "p", "natgrad-card-code natgrad-quiet", "This state again: ");
      const code = make(again, "code");
      if (card.held < card.all) {
        make(root, "p", "natgrad-quiet", `This page holds ${card.held} of ${card.all} combinations; in a notebook there are all.`);
      }
      parts = { note, number, what, code };
      new ResizeObserver(draw).observe(plot);
      window.matchMedia?.("(prefers-color-scheme: dark)").addEventListener("change", draw);
      moveTo(current, null);
    }

    function addControls(row) {
      card.controls.forEach((control, k) => {
        const label = make(row, "label");
        const words = () => make(label, "span", "", control.label);
        let input;
        if (control.kind === "menu") {
          words();
          input = make(label, "select");
          control.values.forEach((value) => make(input, "option", "", value));
        } else if (control.kind === "toggle") {
          input = make(label, "input");
          input.type = "checkbox";
          words();
        } else {
          words();
          input = make(label, "input");
          Object.assign(input, { type: "range", min: 0, max: control.values.length - 1, step: 1 });
          input.setAttribute("aria-label", control.label);
        }
        const output = control.kind === "slider" ? make(label, "output") : null;
        const on = control.values.indexOf("yes");
        controls.push({
          get: () => (control.kind === "menu" ? input.selectedIndex : control.kind === "toggle" ? (input.checked ? on : 1 - on) : Number(input.value)),
          set(at) {
            if (control.kind === "menu") input.selectedIndex = at;
            else if (control.kind === "toggle") input.checked = at === on;
            else {
              input.value = at;
              output.textContent = control.values[at];
              input.setAttribute("aria-valuetext", control.values[at]);
            }
          },
        });
        input.addEventListener(control.kind === "slider" ? "input" : "change", () => moveTo(controls.map((each) => each.get()), k));
      });
    }

    function moveTo(wanted, moved) {
      const isHeld = wanted.join("-") in card.states;
      current = isHeld ? wanted : nearest(card, wanted, moved);
      parts.note.textContent = isHeld ? "" : "This page does not hold that combination. The nearest one is shown: see the controls.";
      controls.forEach((control, k) => control.set(current[k]));
      const place = current.join("-");
      const state = card.states[place];
      parts.number.textContent = state.number;
      parts.what.textContent = state.words;
      parts.code.textContent = `ng.widgets.card("${card.name}:${place}")`;
      plot.setAttribute("aria-label", `${card.caption} Now: ${state.number}, ${state.words}.`);
      draw();
    }

    let drawing = Promise.resolve();
    function draw() {
      const state = card.states[current.join("-")];
      drawing = drawing.then(() => {
        if (state !== card.states[current.join("-")] || !plot.clientWidth) return;
        const copy = (place) => JSON.parse(JSON.stringify(card.pool[place])); // plotly writes into what it is given
        const layout = copy(state.layout);
        layout.font = { ...layout.font, color: getComputedStyle(root).color };
        Object.assign(layout, { autosize: false, width: plot.clientWidth, height: state.height });
        const config = { displaylogo: false, showSendToCloud: false, responsive: false, displayModeBar: false };
        plot.style.height = `${state.height}px`;
        const figure = { data: state.data.map(copy), layout: forWidth(layout, plot.clientWidth) };
        const themed = forTheme(figure, layout.font.color);
        return Plotly.react(plot, themed.data, themed.layout, config).then(() => {
          plot.dataset.stamp = current.join("-");
          plot.dataset.drawn = Number(plot.dataset.drawn || 0) + 1;
        });
      }).catch((error) => {
        parts.note.textContent = `The plot cannot be drawn: ${error}`;
      });
    }

    const [name, place] = decodeURIComponent(location.hash.slice(1)).split(":");
    if (name === card.name && place in card.states) current = place.split("-").map(Number);
    const said = store.get(card.name);
    if (said !== null || root.hasAttribute("data-revealed")) reveal(said);
    else ask();
  }

  function startAll() {
    document.querySelectorAll("[data-natgrad-card]").forEach(start);
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
