"The list of references: labels as they stand in the text, names and year."

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle


def names_and_year(entry: Entry) -> str:
    "Like `Karras et al., 2019`."
    persons = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [" ".join([*p.prelast_names, *p.last_names]) for p in persons]
    names = [str(Text.from_latex(n)) for n in names] or [entry.key]
    who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
    return ", ".join([who, *filter(None, [entry.fields.get("year")])])


class AuthorYearLabels(BaseLabelStyle):
    "The labels; where two would be equal, the years in the file bear letters."

    def format_labels(self, sorted_entries):
        yield from map(names_and_year, sorted_entries)


class AuthorYear(Style):
    "Sphinx-bibtex's plain style, sorted by author, with these labels."

    default_label_style = AuthorYearLabels
    default_sorting_style = "author_year_title"


def setup(app):
    register_plugin("pybtex.style.formatting", "author_year", AuthorYear)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
