"""Sphinx makes the site of these pages: python -m sphinx -W docs OUT

Needs the extra "docs". Without -t online, references to Python's own documentation are
resolved by docs/python.inv, which tools/python_inventory.py makes, and nothing is fetched.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import aioproc  # noqa: E402

# -- the project

#: The package, which is what people import. The distribution's name is pyproject.toml's.
project = "aioproc"
version = release = aioproc.__version__
author = "the maintainers of aioproc"
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
nitpicky = True
# Names of types that signatures use, and that have no page of their own: those of typing and
# the aliases, which docs/reference/types.md explains.
nitpick_ignore_regex = [
    ("py:class", r"(aioproc\._\w+(\.\w+)*\.)?(T|P|_?TimeoutError|Runs|Merged)"),
    ("py:class", r"(aioproc\._\w+(\.\w+)*\.)?ProcessOpener"),
    ("py:class", r"(Any|Callable|Awaitable|Iterable|Mapping|Self|Literal|Popen|Generic)"),
    (
        "py:class",
        r"(Callback|Container|Input|Path|Step|Stream|StrOrBytesPath|BytesLike|Reason|Forced|Halt)",
    ),
    ("py:class", r"(BytesCallback|TextCallback|TracebackType|WritePipeTransport)"),
    ("py:obj", r"aioproc\._run\.\w+\.T"),
    ("py:class", r"(signal\.Signals|eof|soon|now|never|optional)"),
]

# -- pages

# Quotation marks in words of code are to be copied as they are.
smartquotes = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_ambiguous"]

# -- the reference

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Platforms", "returns_style"), ("Source", "returns_style")]
python_maximum_signature_line_length = 76
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# Beside the documentation itself, which a build with "-t online" asks.
_inventory = None if "online" in globals().get("tags", ()) else "python.inv"
intersphinx_mapping = {"python": ("https://docs.python.org/3", _inventory)}

# -- the site

html_theme = "furo"
html_title = f"aioproc {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

_SECTIONS = ("Source", "Platforms")


class _Constant:
    """A default that is shown by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


_CONSTANTS = {
    subprocess.PIPE: _Constant("PIPE"),
    subprocess.STDOUT: _Constant("STDOUT"),
    subprocess.DEVNULL: _Constant("DEVNULL"),
}


def _shown(parameter: inspect.Parameter) -> inspect.Parameter:
    """With constants by their names, and without annotations that say nothing."""
    default = parameter.default
    if parameter.name in ("stdin", "stdout", "stderr"):
        if default is ...:  # run(), which has to know whether it was given
            default = subprocess.DEVNULL if parameter.name == "stdin" else subprocess.PIPE
        parameter = parameter.replace(default=_CONSTANTS.get(default, default))
    if parameter.annotation in ("Any", Any, "object"):
        parameter = parameter.replace(annotation=parameter.empty)
    return parameter


#: Classes whose objects are made by this library alone. (A CompletedProcess is made by hand in
#: tests.)
MADE_BY_US = {
    name
    for name in aioproc.__all__
    if inspect.isclass(getattr(aioproc, name))
    and name not in ("Command", "CompletedProcess", "Job", "Limiter")
}


def signature(
    app: Any, what: str, name: str, obj: Any, options: Any, given: str | None, returns: str | None
) -> tuple[str, str] | None:
    """Whole, on one line or with a line for each parameter."""
    if what in ("class", "exception") and name.rpartition(".")[2] in MADE_BY_US:
        return "", ""
    if what not in ("function", "method", "class"):
        return None
    try:
        found = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    parameters = [_shown(one) for one in found.parameters.values()]
    if what == "method" and parameters and parameters[0].name == "self":
        del parameters[0]
    result = found.return_annotation
    if what == "class" or result in ("Any", Any):
        result = found.empty
    text = str(found.replace(parameters=parameters, return_annotation=result))
    # Annotations are strings: those of the source.
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    arguments, _, arrow = text.partition(" -> ")
    return arguments, arrow


def _without_tests(app: Any, name: str, text: list[str]) -> None:
    """Readers of the pages do not need to know the tests of a rule."""
    if name == "semantics":
        text[0] = re.sub(r"\s*\[`test[^]]*\]", "", text[0])
        text[0] = re.sub(
            r"^Each rule has tests.*?\n(?=\"asyncio\")", "", text[0], flags=re.M | re.S
        )


def _without_doctrees(app: Any, exception: Exception | None) -> None:
    """What Sphinx keeps for its next run is no part of the site."""
    if exception is None and Path(app.outdir) in Path(app.doctreedir).parents:
        shutil.rmtree(app.doctreedir, ignore_errors=True)


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", signature)
    app.connect("source-read", _without_tests)
    app.connect("build-finished", _without_doctrees)
