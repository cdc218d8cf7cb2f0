// From values to colours: the scales of the menu, and for each a table from a float's first bits to a pixel.
const SCALES = {
  log: { label: "|F|, log", reduce: "rms", colours: "sequential", log: true, signed: false },
  magnitude: { label: "|F|, linear", reduce: "rms", colours: "sequential", log: false, signed: false },
  signedlog: { label: "signed, log", reduce: "mean", colours: "diverging", log: true, signed: true },
  signed: { label: "signed, linear", reduce: "mean", colours: "diverging", log: false, signed: true },
  correlationsize: { label: "|correlation|, log", reduce: "correlation size", colours: "sequential", log: true, signed: false, limits: [1e-3, 1] },
  correlation: { label: "correlation", reduce: "correlation", colours: "diverging", log: false, signed: true, limits: [1e-3, 1] },
};

function colourTable(bytes) {
  const table = new Uint32Array(256);
  const view = new Uint8Array(table.buffer);
  for (let k = 0; k < 256; k++) view.set([bytes[3 * k], bytes[3 * k + 1], bytes[3 * k + 2], 255], 4 * k);
  return table;
}

// Sign, exponent and eight bits of the fraction of a float32 say its colour to half a step of 256; what is no number has none.
function createShade(scale, [low, high], table) {
  const HALF = 2 ** 16;
  const colours = new Uint32Array(2 * HALF);
  const bits = new Uint32Array(1);
  const number = new Float32Array(bits.buffer);
  const [bottom, decades] = [Math.log10(low), Math.log10(high / low)];
  const first = scale.log ? low : high / 1024; // below it all is one colour, as above `high`
  for (let k = 0; k <= 0xff00; k++) {
    bits[0] = k * 2 ** 15 + 2 ** 14;
    const size = number[0];
    let place = 1;
    if (size <= first) place = 0;
    else if (size < high) place = scale.log ? (Math.log10(size) - bottom) / decades : size / high;
    colours[k] = table[Math.trunc(scale.signed ? 127.5 + 127.5 * place : 255 * place + 0.5)];
    colours[k + HALF] = scale.signed ? table[Math.trunc(127.5 - 127.5 * place)] : colours[k];
  }

  // The pixels of a tile's cells; kept with the tile.
  function coloursOf(tile) {
    if (tile.shade === shade) return tile.colours;
    const { values } = tile;
    const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
    tile.colours ??= new Uint32Array(values.length);
    for (let k = 0; k < words.length; k++) tile.colours[k] = colours[words[k] >>> 15];
    tile.shade = shade;
    return tile.colours;
  }
  const shade = { scale, low, high, table, coloursOf };
  return shade;
}

// Whether text on this pixel should be white.
const isDark = (pixel) => 0.3 * (pixel & 255) + 0.59 * ((pixel >> 8) & 255) + 0.11 * ((pixel >> 16) & 255) < 140;
