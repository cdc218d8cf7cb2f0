"""A notebook's Markdown and code as HTML that needs no network: formulas become MathML, which browsers draw themselves."""

import re
from functools import cache
from html import escape

_SPANS = re.compile(r"(?s)```.*?```|`[^`]*`|\$\$.*?\$\$|(?<!\\)\$[^$`]+\$")
ALIGNED = re.compile(r"\\(begin|end)\{aligned\}")


def markdown(text: str) -> str:
    """HTML of Markdown with $formulas$, tables, and the <details> that notebooks use; headings get ids."""
    return _reader().render(_SPANS.sub(_on_one_line, text))


def _on_one_line(span: re.Match) -> str:
    """A formula that goes on in the next line; there it could begin like a list."""
    is_inline = span[0].startswith("$") and not span[0].startswith("$$")
    return span[0].replace("\n", " ") if is_inline else span[0]


def formula(latex: str, *, display: bool) -> str:
    """MathML. Raises: ValueError with the formula if it holds what cannot be written so."""
    from latex2mathml.converter import convert

    latex = ALIGNED.sub(r"\\\1{align*}", latex.strip())
    try:
        made = convert(latex, display="block" if display else "inline")
    except Exception as error:
        raise ValueError(f"this formula cannot be drawn ({type(error).__name__}: {error}): {latex}") from None
    if re.search(r"<m\w+>(&(?!#)|\\)", made):
        raise ValueError(f"a part of this formula is not known: {latex}")
    return f'<div class="formula">{made}</div>' if display else made


def code(source: str) -> str:
    """Highlighted Python."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(source, PythonLexer(), HtmlFormatter(cssclass="code"))


def code_style() -> str:
    """The colours of `code`, light and dark."""
    from pygments.formatters import HtmlFormatter

    dark = HtmlFormatter(style="github-dark", cssclass="code").get_style_defs()
    return (
        HtmlFormatter(style="default", cssclass="code").get_style_defs()
        + f"\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
    )


def slug(heading: str) -> str:
    """The id of a heading, as JupyterLab makes it: spaces become hyphens."""
    return escape(heading.strip().replace(" ", "-"), quote=True)


@cache
def _reader():
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def render(latex: str, options: dict) -> str:
        return formula(latex, display=options["display_mode"])

    reader = MarkdownIt("commonmark", {"html": True, "typographer": False}).enable("table")
    reader.use(dollarmath_plugin, renderer=render, double_inline=True, allow_digits=True, allow_blank_lines=False)
    reader.add_render_rule("heading_open", _heading)
    return reader


def _heading(self, tokens, index, options, env):
    tokens[index].attrSet("id", slug(tokens[index + 1].content))
    return self.renderToken(tokens, index, options, env)
