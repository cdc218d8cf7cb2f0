// Beside the matrix: its spectrum, the numbers read off it, and a table of layers. `changed(damping)` is called by the slider.
const SERIES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]; // Okabe-Ito

function createPanel(parent, make, changed) {
  const panel = make(parent, "div", "ngx-panel");
  const headline = make(panel, "div", "ngx-headline");
  const numbers = make(panel, "div", "ngx-numbers");
  const chart = make(panel, "canvas", "ngx-chart");
  chart.setAttribute("role", "img");
  const legend = make(panel, "div", "ngx-legend");
  const holder = make(panel, "label", "ngx-damping", "damping λ ");
  const knob = make(holder, "input", "");
  Object.assign(knob, { type: "range", min: -8, max: 1, step: 0.25 });
  const told = make(holder, "output", "");
  const table = make(panel, "table", "ngx-layers");
  const notes = make(panel, "div", "ngx-small");
  let given = null;
  let damping = 1e-3;
  let pointed = null;

  const short = (value) => {
    if (value === null || !Number.isFinite(value)) return "–";
    if (value !== 0 && (Math.abs(value) < 0.01 || Math.abs(value) >= 10000)) {
      const [digits, power] = value.toExponential(1).split("e");
      return `${digits}·10${[...String(Number(power))].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("")}`;
    }
    return Number(value.toPrecision(3)).toLocaleString("en");
  };
  const whole = (value) => value.toLocaleString("en");

  function draw() {
    if (!given) return;
    told.textContent = short(damping);
    const [exact] = given.spectra;
    panel.hidden = !exact && !given.notes.length;
    if (exact) {
      const before = given.spectra.find((each) => each.kind === "plain");
      headline.textContent = before
        ? `condition ${short(before.condition)} → ${short(exact.condition)} white`
        : `condition number ${short(exact.condition)}`;
      const effective = exact.eigenvalues.reduce((sum, value) => sum + value / (value + damping), 0);
      numbers.textContent =
        `${whole(exact.rank)} nonzero eigenvalues, null space ${whole(exact.null)} of ${whole(given.dim)}. ` +
        `At the damping: effective dimension ${short(effective)}, condition ${short((exact.eigenvalues[0] + damping) / (exact.null ? damping : exact.eigenvalues[exact.rank - 1] + damping))}.`;
      panel.dataset.effective = effective;
      plot();
    }
    notes.textContent = given.notes.join(" ");
    listLayers();
  }

  function plot() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [chart.clientWidth || 300, 140];
    [chart.width, chart.height] = [width * ratio, height * ratio];
    const pen = chart.getContext("2d");
    pen.scale(ratio, ratio);
    const ink = getComputedStyle(panel).color;
    pen.font = `11px ${getComputedStyle(panel).fontFamily}`;
    const values = given.spectra.flatMap((each) => [each.eigenvalues[0], each.eigenvalues.at(-1)]).filter((value) => value > 0);
    const [low, high] = [Math.min(...values, damping), Math.max(...values, damping)].map(Math.log10);
    const [bottom, top] = [Math.floor(Math.max(low, high - 16)), Math.ceil(high)];
    const most = Math.max(...given.spectra.map((each) => each.rank), 2);
    const x = (k) => 38 + ((width - 44) * k) / (most - 1);
    const y = (value) => 6 + (height - 24) * (1 - (Math.log10(value) - bottom) / Math.max(1, top - bottom));
    [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [ink, "rgba(128,128,128,0.35)", 1];
    const step = Math.max(1, Math.ceil((top - bottom) / 4));
    for (let power = bottom; power <= top; power += step) {
      const at = y(10 ** power);
      pen.fillText(short(10 ** power).replace("1.0·", ""), 0, at + 4, 34);
      pen.beginPath();
      [pen.moveTo(38, at), pen.lineTo(width - 6, at), pen.stroke()];
    }
    pen.fillText("eigenvalue 1", 38, height - 2);
    pen.textAlign = "end";
    pen.fillText(whole(most), width - 6, height - 2);
    pen.textAlign = "start";
    legend.replaceChildren();
    given.spectra.forEach((each, n) => {
      const colour = each.kind === "exact" ? ink : each.kind === "plain" ? "#8a8a8a" : SERIES[(n - 1) % SERIES.length];
      [pen.strokeStyle, pen.lineWidth] = [colour, 1.6];
      pen.beginPath();
      each.eigenvalues.forEach((value, k) => (k ? pen.lineTo(x(k), y(value)) : pen.moveTo(x(k), y(value))));
      pen.stroke();
      const name = each.kind === "preconditioned" ? `preconditioned by ${each.name} + ${short(given.damping)} I: condition ${short(each.condition)}` : each.name;
      make(legend, "span", "", name).style.setProperty("--ngx-colour", colour);
    });
    [pen.strokeStyle, pen.lineWidth] = [ink, 1];
    pen.setLineDash([3, 3]);
    pen.beginPath();
    [pen.moveTo(38, y(damping)), pen.lineTo(width - 6, y(damping)), pen.stroke()];
    pen.setLineDash([]);
    pen.fillText("λ", width - 14, y(damping) - 3);
    const about = pointed === null ? null : Math.max(0, Math.min(given.spectra[0].rank - 1, Math.round(((pointed - 38) / (width - 44)) * (most - 1))));
    if (about !== null && given.spectra[0].rank) {
      const value = given.spectra[0].eigenvalues[about];
      pen.beginPath();
      [pen.arc(x(about), y(value), 3, 0, 7), pen.fill()];
      pen.textAlign = x(about) > width / 2 ? "end" : "start";
      pen.fillText(` eigenvalue ${whole(about + 1)}: ${short(value)} `, x(about), Math.max(12, y(value) - 6));
      pen.textAlign = "start";
    }
    chart.setAttribute("aria-label", `all ${given.spectra[0].rank} nonzero eigenvalues, from ${values[0]} to ${values[1]}, logarithmic`);
  }

  function listLayers() {
    table.replaceChildren();
    if (!given.layers.length) return;
    const head = make(table, "tr", "");
    for (const text of ["layer", "parameters", "of trace", "largest eigenvalue", "condition"]) make(head, "th", "", text).scope = "col";
    for (const layer of given.layers) {
      const row = make(table, "tr", "");
      make(row, "th", "", `W${layer.number} (${layer.name})`).scope = "row";
      for (const text of [whole(layer.parameters), `${(100 * layer.share).toFixed(1)} %`, short(layer.largest), short(layer.condition)])
        make(row, "td", "", text);
    }
  }

  knob.addEventListener("input", () => {
    damping = 10 ** Number(knob.value);
    draw();
    changed(damping);
  });
  chart.addEventListener("pointermove", (event) => {
    pointed = event.clientX - chart.getBoundingClientRect().left;
    draw();
  });
  chart.addEventListener("pointerleave", () => {
    pointed = null;
    draw();
  });
  return {
    take(analysis) {
      given = analysis;
      draw();
    },
    damp(value) {
      damping = value;
      knob.value = Math.log10(value);
      told.textContent = short(damping);
      draw();
    },
    draw,
  };
}
