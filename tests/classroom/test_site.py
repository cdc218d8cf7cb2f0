"""The site: formulas that browsers draw themselves, nothing from a network, every lesson and card there."""

import re
from html.parser import HTMLParser

import pytest

from natgrad_lab.classroom import build as building
from natgrad_lab.classroom import prose, site
from natgrad_lab.course.lessons import lesson_modules
from natgrad_lab.notebooks import read

(LESSON,) = building.lessons(["03"])
VOID = {"meta", "link", "img", "br", "hr", "input", "mspace"}


class Page(HTMLParser):
    """Addresses that the page would load, ids, links, and whether its elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids, self.open, self.wrong = [], [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        has = dict(attrs)
        self.ids |= {has["id"]} if "id" in has else set()
        self.loads += [value for key, value in attrs if key == "src" or key == "href" and tag == "link"]
        self.links += [has["href"]] if tag == "a" and "href" in has else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The prologue and lesson 03; of the cards, which have tests of their own, only their place."""
    from natgrad_lab.widgets import card_page

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card_page, "card_fragment", lambda card: f'<section data-natgrad-card="{card.name}"></section>')
        site.build_site(folder, ["00", LESSON.number])
    return folder


def test_pages_load_nothing_from_elsewhere_and_links_lead_somewhere(out):
    pages = {path.name: Page(path.read_text(encoding="utf-8")) for path in out.glob("*.html")}
    assert len(pages) == 3 and (out / "plotly.min.js").stat().st_size > 1e6
    for name, page in pages.items():
        assert page.wrong == [] and page.open == [], name
        for address in page.loads:
            assert address.startswith("data:image/png;base64,") or (out / address).is_file(), address
        for address in page.links:
            if not address.startswith("https://"):
                place, _, part = address.partition("#")
                assert (place or name) in pages and (not part or part in pages[place or name].ids), address
        text = (out / name).read_text(encoding="utf-8")
        words = re.sub(r"(?s)<script.*?</script>|base64,[^\"]*", "", text)
        assert 'name="viewport"' in text and not re.search(r"(?i)cdn|unpkg|mathjax|katex", words)
    assert "@import" not in (out / "style.css").read_text() and "url(" not in (out / "style.css").read_text()


def test_every_formula_of_the_course_can_be_drawn_and_none_is_left_as_dollars():
    for lesson in building.lessons():
        for cell in read(lesson.path).cells:
            if cell.cell_type == "markdown":
                made = prose.markdown(building.CLAIM.sub("", cell.source))
                words = re.sub(r"(?s)<(math|code|pre).*?</\1>|<[^>]*>", "", made)
                assert "$" not in words and "\\frac" not in words, f"{lesson.path.name}: {words}"


def test_a_lesson_has_its_cards_figures_and_headings(out):
    lesson = LESSON
    text = (out / lesson.path.with_suffix(".html").name).read_text(encoding="utf-8")
    for card in getattr(lesson_modules("cards").get(lesson.number), "CARDS", ()):
        assert f'data-natgrad-card="{card.name}"' in text
    assert (
        lesson.title in re.sub(r"<[^>]*>", "", text)
        and "Traceback" not in text
        and "<!--" not in re.sub(r"(?s)<script.*?</script>", "", text)
    )
    for heading in (cell.source.splitlines()[0] for cell in read(lesson.path).cells if cell.source.startswith("## ")):
        assert f'id="{prose.slug(heading.removeprefix("## "))}"' in text


@pytest.mark.parametrize("latex, parts", [
    (r"\tfrac12\,\delta^\top F\delta", ["<mfrac>", "<msup>"]),
    (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", ["<mtable", "<mtr>"]),
    (r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", ["<mtable>"]),
    (r"x < y > z \mathbb{E}", ["&lt;", "&gt;"]),
])  # fmt: skip
def test_formulas(latex, parts):
    made = prose.formula(latex, display=True)
    plain = made.replace("&#x0003C;", "&lt;").replace("&#x0003E;", "&gt;")
    assert all(part in plain for part in parts) and 'display="block"' in made


@pytest.mark.parametrize("latex", [r"\nosuchthing{x}", r"a & b"])
def test_a_formula_that_cannot_be_drawn_is_named(latex):
    with pytest.raises(ValueError, match="formula"):
        prose.formula(latex, display=False)


def test_markdown_of_notebooks():
    made = prose.markdown(
        "## A b\n\n**bold** `x_1` and $x_1$.\n\n| a | b |\n|---|---|\n| 1 | $y$ |\n\n<details><summary>A</summary>\n\n"
        "*Yes.*\n\n</details>\n"
    )
    assert '<h2 id="A-b">' in made and "<strong>bold</strong>" in made and "<em>Yes.</em>" in made and made.count("<math") == 2
    assert "<table>" in made and "<code>x_1</code>" in made


def test_a_notebook_that_is_out_of_date_is_not_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(site, "difference_of", lambda path: f"{path.name} is old")
    with pytest.raises(ValueError, match="(?s)out of date:.*00_ten"):
        site.build_site(tmp_path / "out")
    assert not (tmp_path / "out").exists()
