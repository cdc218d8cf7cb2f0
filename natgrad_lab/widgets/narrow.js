// Figures on narrow pages: a legend beside the axes goes below them, and panels side by side keep a width at which they can be
// read, so that the page scrolls them. A finger always scrolls: it does not zoom.
const READABLE = 600; // CSS pixels

function forWidth(layout, width) {
  const isTouch = window.matchMedia?.("(pointer: coarse)").matches;
  const ours = isTouch ? { ...layout, dragmode: false } : layout;
  if (width >= READABLE) return ours;
  const legend = layout.legend ?? {};
  const isInside = (legend.x !== undefined && legend.x < 1) || legend.orientation === "h";
  const below = { ...legend, orientation: "h", x: 0, xanchor: "left", y: -0.25, yanchor: "top" };
  const starts = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key)).map((key) => layout[key].domain?.[0]);
  const isSideBySide = new Set(starts).size > 1;
  return { ...ours, width: isSideBySide ? READABLE : layout.width, legend: layout.showlegend && !isInside ? below : legend };
}
