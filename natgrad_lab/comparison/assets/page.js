"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const options = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  const draw = (place, figure) => Plotly.react(place, figure.data, figure.layout, options);

  for (const place of document.querySelectorAll("[data-figure]")) {
    const figure = data.figures[place.dataset.figure];
    if (figure && figure.data.length) draw(place, figure);
    else place.remove();
  }

  const sorted = (table, column, ascending) => {
    const body = table.tBodies[0];
    const key = (row) => {
      const cell = row.cells[column];
      if (cell.dataset.value === undefined) return cell.classList.contains("missing") ? null : cell.textContent;
      return Number(cell.dataset.value);
    };
    const rows = [...body.rows].sort((one, two) => {
      const [a, b] = [key(one), key(two)];
      if (a === null || b === null) return (a === null) - (b === null);
      return (typeof a === "number" ? a - b : a.localeCompare(b)) * (ascending ? 1 : -1);
    });
    body.append(...rows);
  };
  for (const table of document.querySelectorAll("table.sorts")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const ascending = before ? before !== "ascending" : head.dataset.better === "low" || column === 0;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sorted(table, column, ascending);
      });
    });
  }
  document.getElementById("all-columns").addEventListener("change", (event) => {
    document.getElementById("numbers").classList.toggle("wide", event.target.checked);
  });

  const choose = (id, place, figures) => {
    const select = document.getElementById(id);
    if (!select) return;
    const show = () => draw(document.getElementById(place), figures[select.value]);
    select.addEventListener("change", show);
    show();
  };
  choose("sweep-metric", "sweep", data.sweeps);
  choose("layer-metric", "layers", data.layers);

  const matrix = document.getElementById("matrix");
  if (matrix) {
    draw(document.getElementById("matrix-exact"), data.matrices.exact.approximation);
    const show = () => {
      for (const kind of ["approximation", "difference"]) {
        draw(document.getElementById("matrix-" + kind), data.matrices[matrix.value][kind]);
      }
    };
    matrix.addEventListener("change", show);
    show();
  }

  const slider = document.getElementById("damping");
  const { dampings, start, bars, layout } = data.slider;
  slider.max = dampings.length - 1;
  slider.value = start;
  const at = () => {
    const place = Number(slider.value);
    document.getElementById("damping-value").textContent = dampings[place].toExponential(1);
    const known = bars.filter((bar) => bar.values[place] !== null);
    const trace = {
      type: "bar", orientation: "h", y: known.map((bar) => bar.label), x: known.map((bar) => bar.values[place]),
      marker: { color: known.map((bar) => bar.colour) }, text: known.map((bar) => (100 * bar.values[place]).toFixed(1) + "%"),
      textposition: "outside", cliponaxis: false, hoverinfo: "skip",
    };
    Plotly.react(document.getElementById("at-damping"), [trace], layout, options);
  };
  slider.addEventListener("input", at);
  at();
})();
