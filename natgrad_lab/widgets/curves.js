// A plotly figure whose arrays arrive as raw bytes. plotly.js itself comes from the kernel, once for all views of a page.

const TYPES = { float32: Float32Array, float64: Float64Array, int32: Int32Array, uint8: Uint8Array };
const PATIENCE = 20000; // milliseconds until another view asks for plotly.js again

function loadPlotly(send) {
  const shared = (window.natgradPlotly ??= {});
  if (!shared.loaded || (!shared.done && performance.now() - shared.asked > PATIENCE)) {
    shared.asked = performance.now();
    shared.loaded = new Promise((resolve, reject) => Object.assign(shared, { resolve, reject }));
    shared.loaded.then(() => (shared.done = true), () => (shared.loaded = null));
    send({ type: "library" });
  }
  return shared.loaded;
}

async function receiveLibrary(message, [bytes]) {
  const shared = window.natgradPlotly;
  // As a module with its own `module` and no `define`, so that a loader in the page (require.js) does not catch it.
  const parts = ["const module = { exports: {} }, exports = module.exports, define = undefined;\n", bytes, "\nexport default module.exports;"];
  const url = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
  try {
    shared.resolve((await import(url)).default);
  } catch (error) {
    shared.reject(error);
  } finally {
    URL.revokeObjectURL(url);
  }
}

function withArrays(value, buffers) {
  if (Array.isArray(value)) return value.map((item) => withArrays(item, buffers));
  if (value === null || typeof value !== "object") return value;
  if ("$buffer" in value) {
    const view = buffers[value.$buffer];
    return new TYPES[value.dtype](view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
  }
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, withArrays(item, buffers)]));
}

function render({ model, el }) {
  const root = element(el, "div", "natgrad-plot");
  root.style.height = `${model.get("height")}px`;
  root.setAttribute("role", "img");
  const waiting = element(root, "div", "natgrad-plot-waiting");
  waiting.textContent = "Loading the plot library…";
  const plot = element(root, "div", "natgrad-plot-area");
  const flow = connect(model, { library: receiveLibrary });
  let plotly = null;
  let figure = null;
  let drawn = 0;

  let queue = Promise.resolve(); // one drawing at a time: plotly does not bear two
  let closed = false;

  function draw() {
    const turn = queue.then(() => closed || drawNow());
    queue = turn.catch(() => {});
    return turn;
  }

  async function drawNow() {
    const style = getComputedStyle(root);
    const colour = style.color;
    const layout = { ...figure.layout, font: { ...figure.layout.font, color: colour }, autosize: true };
    root.style.height = `${model.get("height")}px`;
    Object.assign(layout, { width: root.clientWidth || undefined, height: model.get("height") });
    const config = { displaylogo: false, showSendToCloud: false, responsive: false, displayModeBar: false };
    const themed = forTheme({ data: figure.data, layout: forWidth(layout, root.clientWidth) }, colour);
    await plotly.react(plot, themed.data, themed.layout, config);
  }

  flow.paint = async (header, buffers) => {
    try {
      plotly ??= await loadPlotly(flow.send);
      waiting.style.display = "none";
      figure = withArrays(header.figure, buffers);
      root.setAttribute("aria-label", header.alt);
      await draw();
      root.dataset.drawn = ++drawn;
      root.dataset.stamp = header.stamp;
    } catch (error) {
      waiting.style.display = "block";
      waiting.textContent = `The plot cannot be drawn: ${error}`;
    }
  };

  const redraw = () => figure && plotly && root.clientWidth && draw().catch(() => {}); // the next frame shows the error
  const resized = new ResizeObserver(redraw);
  resized.observe(root);
  const themed = new MutationObserver(redraw);
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  flow.start();
  return () => {
    resized.disconnect();
    themed.disconnect();
    flow.stop();
    closed = true;
    queue.then(() => plotly?.purge(plot));
  };
}

export default { render };
