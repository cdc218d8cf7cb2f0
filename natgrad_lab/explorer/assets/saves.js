// What a view can be taken away as: PNG, SVG, the entries of the region, the state that opens it again.
function createSaves(core, where, button) {
  const { host, lens, root, state } = core;
  const background = () => {
    const colour = getComputedStyle(root).getPropertyValue("--jp-layout-color0").trim() || getComputedStyle(document.body).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? "white" : colour;
  };
  const names = () => (core.panes.length > 1 ? core.panes.map((pane) => core.symbol(pane.source())) : []);

  button("PNG", "save this view as PNG", () => {
    const all = document.createElement("canvas");
    const [first] = core.panes;
    const ratio = first.overlay.width / (core.size + LEFT);
    const above = names().length ? 20 * ratio : 0;
    [all.width, all.height] = [first.overlay.width * core.panes.length, first.overlay.height + above];
    const pen = all.getContext("2d");
    pen.fillStyle = background();
    pen.fillRect(0, 0, all.width, all.height);
    pen.fillStyle = getComputedStyle(root).color;
    pen.font = `${13 * ratio}px ${getComputedStyle(root).fontFamily}`;
    core.panes.forEach((pane, n) => {
      const start = n * first.overlay.width;
      if (above) pen.fillText(names()[n], start + LEFT * ratio, 14 * ratio);
      pen.drawImage(pane.pixels, start + LEFT * ratio, above + TOP * ratio, core.size * ratio, core.size * ratio);
      pen.drawImage(pane.overlay, start, above);
    });
    all.toBlob((blob) => saveAs(blob, "fisher.png"));
  }, where);

  button("SVG", "save this view as SVG: labels and lines stay text and lines", () => {
    const [width, height] = [core.size + LEFT, core.size + TOP];
    const parts = core.panes.map((pane, n) => {
      const { pen, parts } = svgPen(document.createElement("canvas").getContext("2d"));
      paintOver(pen, core, pane.source(), lens.level());
      if (names().length) pen.fillText(names()[n], LEFT, 12);
      const image = `<image x="${LEFT}" y="${TOP}" width="${core.size}" height="${core.size}" style="image-rendering:pixelated" href="${pane.pixels.toDataURL()}"/>`;
      return `<g transform="translate(${n * width} 0)">${image}${parts.join("")}</g>`;
    });
    const text = svgText(width * core.panes.length, height, getComputedStyle(root).fontFamily, background(), parts.join(""));
    saveAs(new Blob([text], { type: "image/svg+xml" }), "fisher.svg");
  }, where);

  if (host.save)
    button("npz", "save the entries of this region with their names, for NumPy", () => {
      host.save({ rows: lens.ends("row"), columns: lens.ends("column"), source: state.source, compare: state.compare });
    }, where);
  if (host.arrange)
    button("Copy view", "copy what ng.explore(..., state=...) needs to open this view again", () => {
      const text = JSON.stringify(state).replace(/:true/g, ":True").replace(/:false/g, ":False");
      navigator.clipboard?.writeText(text);
      root.dataset.copied = text;
    }, where);
}
