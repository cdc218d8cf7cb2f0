// Figures as their page needs them. Narrow: a legend beside the axes goes below them, and panels side by side keep a width at
// which they can be read, so that the page scrolls them. Touched: a finger scrolls and does not zoom. Dark: black and the
// darkest colours of lines become ones that can be seen.
const LEGEND_BELOW = 600; // CSS pixels
const PANELS = 680;
const BLACK = ["black", "#000000", "#444444"];
const ON_DARK = { "#332288": "#9d8df1", "#882255": "#d070a0", "#661100": "#cf7a5a", "#117733": "#3fa35c" };

function forWidth(layout, width) {
  const isTouch = window.matchMedia?.("(pointer: coarse)").matches;
  const ours = isTouch ? { ...layout, dragmode: false } : layout;
  const starts = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key)).map((key) => layout[key].domain?.[0]);
  const isSideBySide = new Set(starts).size > 1;
  const wide = isSideBySide && width < PANELS ? { ...ours, width: PANELS } : ours;
  const legend = layout.legend ?? {};
  const isInside = (legend.x !== undefined && legend.x < 1) || legend.orientation === "h";
  if (!layout.showlegend || width >= LEGEND_BELOW || isInside) return wide;
  return { ...wide, legend: { ...legend, orientation: "h", x: 0, xanchor: "left", y: -0.25, yanchor: "top" } };
}

// The same figure for text of this colour ("rgb(r, g, b)"): on dark pages text is light.
function forTheme({ data, layout }, text) {
  const [red, green, blue] = (text.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  if (red + green + blue < 384) return { data, layout };
  const seen = (colour) => (BLACK.includes(colour) ? text : (ON_DARK[colour] ?? colour));
  const paint = (part) => {
    if (!part) return part;
    const colour = Array.isArray(part.color) ? part.color.map(seen) : seen(part.color);
    return { ...part, ...(part.color && { color: colour }), ...(part.line && { line: paint(part.line) }) };
  };
  const traces = data.map((trace) => {
    if (trace.type?.startsWith("heatmap") || trace.type === "contour") return trace;
    return { ...trace, ...(trace.line && { line: paint(trace.line) }), ...(trace.marker && { marker: paint(trace.marker) }) };
  });
  const shapes = layout.shapes?.map((shape) => ({ ...shape, line: paint(shape.line) }));
  return { data: traces, layout: shapes ? { ...layout, shapes } : layout };
}
