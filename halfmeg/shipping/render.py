"""Files of templates/ filled in: C, pages, the model card."""

from __future__ import annotations

from typing import Any

import jinja2

from halfmeg.artifacts.markdown import escape_markdown
from halfmeg.shipping.proof import loses


def render(template: str, **facts: Any) -> str:
    """Return a file of templates/ filled in."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("halfmeg.shipping"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"markdown": escape_markdown, "loses": loses}
    return environment.get_template(template).render(**facts)
