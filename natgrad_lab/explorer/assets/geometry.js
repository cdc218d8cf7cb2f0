// Cells of every level and names of parameters: the same rules as pyramid.py and places.py, in closed form.

function geometry(about) {
  const { layers, dim, places, units } = about;
  const whole = { start: 0, units: 1, width: dim, rows: false, number: 0 };
  const shown = places ? [whole] : layers; // what has a grid of its own: in an order of single parameters nothing has
  const grids = new Map();

  function grid(level) {
    if (grids.has(level)) return grids.get(level);
    const size = 2 ** level;
    let first = 0;
    const parts = shown.map((layer) => {
      const { units, width } = layer;
      const per = size < width ? Math.ceil(width / size) : 0; // cells of a unit; 0: whole units to a cell
      const group = per ? 1 : 2 ** Math.floor(Math.log2(Math.floor(size / width)));
      const part = { layer, first, per, group, size, count: per ? units * per : Math.ceil(units / group) };
      first += part.count;
      return part;
    });
    const made = { parts, count: first };
    grids.set(level, made);
    return made;
  }

  const last = (list, test) => {
    let low = 0;
    let high = list.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (test(list[middle])) low = middle;
      else high = middle - 1;
    }
    return list[low];
  };
  const layerAt = (index) => last(shown, (layer) => layer.start <= index);

  function cellAt(level, index) {
    const part = last(grid(level).parts, (each) => each.layer.start <= index);
    const at = index - part.layer.start;
    const unit = Math.floor(at / part.layer.width);
    if (!part.per) return part.first + Math.floor(unit / part.group);
    return part.first + unit * part.per + Math.floor((at - unit * part.layer.width) / part.size);
  }

  function edge(level, cell) {
    if (cell >= grid(level).count) return dim;
    const part = last(grid(level).parts, (each) => each.first <= cell);
    const at = cell - part.first;
    if (!part.per) return part.layer.start + at * part.group * part.layer.width;
    const unit = Math.floor(at / part.per);
    return part.layer.start + unit * part.layer.width + (at - unit * part.per) * part.size;
  }

  const unravel = (index, shape) => {
    const at = [];
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      at.unshift(index % shape[axis]);
      index = Math.floor(index / shape[axis]);
    }
    return at;
  };

  // From a place that is shown to the flat order, and back.
  function flat(index) {
    if (places) return places[index];
    if (!units) return index;
    const layer = layerAt(index);
    const order = units[layers.indexOf(layer)];
    const width = (layer.units * layer.width) / order.length;
    const unit = Math.floor((index - layer.start) / width);
    return index + (order[unit] - unit) * width;
  }

  function shownAt([start, stop], text) {
    if (places) {
      if (stop - start > 1) throw new Error(`“${text}” is spread over this order; only single parameters have a place in it`);
      const at = places.indexOf(start);
      return [at, at + 1];
    }
    const layer = last(layers, (each) => each.start <= start);
    if (!units || stop - start === layer.units * layer.width) return [start, stop];
    const order = units[layers.indexOf(layer)];
    const width = (layer.units * layer.width) / order.length;
    const unit = Math.floor((start - layer.start) / width);
    const moved = (order.indexOf(unit) - unit) * width;
    return [start + moved, stop + moved];
  }

  function name(place) {
    const index = flat(place);
    const layer = last(layers, (each) => each.start <= index);
    let at = index - layer.start;
    if (!layer.rows) {
      for (const piece of layer.pieces) {
        const size = piece.shape.reduce((a, b) => a * b, 1);
        if (at < size) return `${piece.name}[${unravel(at, piece.shape)}]`;
        at -= size;
      }
    }
    const unit = Math.floor(at / layer.width);
    const column = at - unit * layer.width;
    if (layer.bias && column === layer.width - 1) return `${layer.pieces[1].name}[${unit}]`;
    return `${layer.pieces[0].name}[${[unit, ...unravel(column, layer.weight_shape)]}]`;
  }

  function inside(start, shape, at, text) {
    let size = shape.reduce((a, b) => a * b, 1);
    if (at.length > shape.length || at.some((i, axis) => i >= shape[axis]))
      throw new Error(`“${text}”: indices must lie inside [${shape}], counted from 0`);
    at.forEach((i, axis) => {
      size /= shape[axis];
      start += i * size;
    });
    return [start, start + size];
  }

  function inLayer(layer, at, bias, whole, text) {
    if (bias && !layer.bias) throw new Error(`“${text}”: layer ${layer.name} has no bias`);
    if (!at.length) return [layer.start, layer.start + layer.units * layer.width];
    if (!layer.rows) return inside(layer.start, [layer.width], at, text);
    if (at[0] >= layer.units) throw new Error(`“${text}”: layer ${layer.name} has the units 0 to ${layer.units - 1}`);
    const start = layer.start + at[0] * layer.width;
    if (bias && at.length === 1) return [start + layer.width - 1, start + layer.width];
    if (at.length === 1) return [start, start + layer.width];
    return inside(start, whole ? [layer.width] : layer.weight_shape, at.slice(1), text);
  }

  function findOne(text) {
    if (/^\d+$/.test(text)) {
      if (Number(text) >= dim) throw new Error(`places run from 0 to ${dim - 1}`);
      return [Number(text), Number(text) + 1];
    }
    const match = text.match(/^([^[\]]+?)\s*(?:\[\s*([\d\s,]*)\])?$/);
    if (!match) throw new Error(`“${text}” is no place. Try W1, b1[0] or ${name(dim - 1)}`);
    const at = (match[2] || "").split(/[\s,]+/).filter(Boolean).map(Number);
    for (const layer of layers) {
      const [weight, bias] = [`W${layer.number}`, `b${layer.number}`];
      if ([layer.name, `layer ${layer.name}`, weight, bias].includes(match[1]))
        return inLayer(layer, at, match[1] === bias, match[1] !== weight && match[1] !== bias, text);
      let start = layer.start;
      for (const [n, piece] of layer.pieces.entries()) {
        if (piece.name === match[1])
          return layer.rows ? inLayer(layer, at, layer.bias && n === 1, false, text) : inside(start, piece.shape, at, text);
        start += piece.shape.reduce((a, b) => a * b, 1);
      }
    }
    throw new Error(`there is no place “${text}”. Try W1, W${layers.length}[0,0] or ${name(dim - 1)}`);
  }

  function find(text) {
    const parts = text.trim().split(/\s+[x×]\s+|\s*×\s*/).filter(Boolean);
    if (parts.length < 1 || parts.length > 2) throw new Error("one name, or two with x between: W2[3,5] x W1[0,2]");
    const found = parts.map((part) => shownAt(findOne(part.trim()), part.trim()));
    return [found[0], found[found.length - 1]];
  }

  const unitAt = (layer, n) => (units ? units[layers.indexOf(layer)][n] : n);

  // Places to rule and to label between two parameters, `room` pixels for each parameter.
  function ticks(from, to, room) {
    const found = [];
    for (const layer of shown) {
      const stop = layer.start + layer.units * layer.width;
      if (layer.start >= to || stop <= from) continue;
      const [low, high] = [Math.max(0, from - layer.start), Math.min(stop, to) - layer.start];
      const apart = 70;
      const byUnit = layer.rows && layer.width * room < apart * 4;
      const scale = byUnit ? layer.width : 1;
      if ((high - low) * room < apart) {
        if (low === 0) found.push([layer.start, `W${layer.number}`]);
        continue;
      }
      let step = 1;
      for (let power = 1; step * scale * room < apart; power *= 10)
        step = [1, 2, 5, 10].map((n) => n * power).find((n) => n * scale * room >= apart) || 10 * power;
      for (let n = Math.ceil(low / scale / step) * step; n * scale < high; n += step)
        found.push([layer.start + n * scale, byUnit ? `W${layer.number}[${unitAt(layer, n)}]` : name(layer.start + n)]);
    }
    return found;
  }

  return { layers: shown, grid, cellAt, edge, name, find, ticks, layerAt };
}
