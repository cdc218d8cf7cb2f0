// The page without a kernel: tiles are in the page, the upper half of each level; the rest is their mirror image.
const opened = location.hash.slice(1); // before the viewer writes its own
const given = JSON.parse(document.getElementById("data").textContent);
const bytesOfText = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
let writing = 0;
const tables = Object.fromEntries(Object.entries(given.colours).map(([name, text]) => [name, colourTable(bytesOfText(text))]));

function kept({ source, reduce, level, i, j }) {
  const [up, down] = [Math.min(i, j), Math.max(i, j)];
  const text = given.tiles[source]?.[reduce]?.[level]?.[`${up},${down}`];
  if (text === undefined) return null;
  const [rows, columns] = [up, down].map((n) => Math.min(given.about.tile, given.counts[level] - n * given.about.tile));
  const values = new Float32Array(bytesOfText(text).buffer);
  if (i <= j) return { rows, columns, values };
  return { rows: columns, columns: rows, values: turned(values, rows, columns) };
}

const viewer = createViewer(document.getElementById("viewer"), { ...given.about, scales: ["log", "magnitude", "signedlog", "signed"] }, tables, {
  request(wanted) {
    // After this frame, as a kernel would: the viewer is not drawn while it draws.
    setTimeout(() => {
      for (const place of wanted) {
        const tile = kept(place);
        if (tile) viewer.receive(place, tile.rows, tile.columns, tile.values);
      }
    });
  },
  moved({ row, column, span, source, compare, same, scale }) {
    const place = { row: row.toFixed(1), column: column.toFixed(1), span: span.toFixed(1), source, scale };
    const words = new URLSearchParams(compare ? { ...place, compare, same: Number(same) } : place);
    clearTimeout(writing); // a browser takes few changes of the address in a second
    writing = setTimeout(() => history.replaceState(null, "", `#${words}`), 100);
  },
});
window.natgradViewer = viewer;
viewer.analysed(given.analysis);
if (opened) restore();
function restore() {
  const words = new URLSearchParams(opened);
  const numbers = ["row", "column", "span"].filter((name) => words.has(name)).map((name) => [name, Number(words.get(name))]);
  const named = ["source", "compare", "scale"].map((name) => [name, words.get(name)]);
  viewer.show({ ...Object.fromEntries([...numbers, ...named]), same: words.get("same") !== "0" });
}
