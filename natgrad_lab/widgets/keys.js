// JupyterLab takes the arrow keys for moving between cells, unless the element that has the focus says that they are its own.
const OWN_KEYS = "select, input[type=radio], .noUi-handle";

function render({ el }) {
  el.style.display = "none";
  let root = null;
  const claim = (event) => event.target.matches(OWN_KEYS) && event.target.setAttribute("data-lm-suppress-shortcuts", "true");
  const attach = () => {
    root = el.closest(".natgrad-card, .natgrad-panel");
    root?.addEventListener("focusin", claim);
    return root !== null;
  };
  const timer = setInterval(() => attach() && clearInterval(timer), 50);
  return () => {
    clearInterval(timer);
    root?.removeEventListener("focusin", claim);
  };
}

export default { render };
