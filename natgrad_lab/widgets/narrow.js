// Figures on narrow pages: a legend beside the axes goes below them.
function forWidth(layout, width) {
  const legend = layout.legend ?? {};
  const isInside = legend.x !== undefined && legend.x < 1 || legend.orientation === "h";
  if (!layout.showlegend || width >= 600 || isInside) return layout;
  return { ...layout, legend: { ...legend, orientation: "h", x: 0, xanchor: "left", y: -0.25, yanchor: "top" } };
}
