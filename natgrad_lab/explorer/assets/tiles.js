// Tiles that came, the newest within a budget of bytes.
const KEPT_BYTES = 2 ** 27;

function createTiles() {
  const kept = new Map(); // key -> {values, rows, columns, epoch, shade, colours}
  let held = 0;
  const bytes = (tile) => 2 * tile.values.byteLength; // values and colours
  const name = ({ source, reduce, level, i, j }) => `${source}|${reduce}|${level}|${i}|${j}`;
  return {
    // A tile, which now counts as new.
    get(place) {
      const key = name(place);
      const tile = kept.get(key);
      if (tile) {
        kept.delete(key);
        kept.set(key, tile);
      }
      return tile;
    },
    put(place, tile) {
      const key = name(place);
      const old = kept.get(key);
      if (old) held -= bytes(old);
      if (old?.values.length === tile.values.length) tile.colours = old.colours; // room for the new ones
      kept.delete(key);
      kept.set(key, tile);
      held += bytes(tile);
      for (const [each, one] of kept) {
        if (held <= KEPT_BYTES) break;
        held -= bytes(one);
        kept.delete(each);
      }
    },
    clear() {
      kept.clear();
      held = 0;
    },
  };
}

// A tile's mirror image.
function turned(values, rows, columns) {
  const out = new Float32Array(values.length);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) out[c * rows + r] = values[r * columns + c];
  return out;
}
