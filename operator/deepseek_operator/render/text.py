"""Text payloads from `templates/*.j2`. Only text is templated; objects are built, and checked, as data."""

import shlex

from jinja2 import Environment, PackageLoader, StrictUndefined

# No autoescape: the results are shell, not HTML. Values pass the `quoted` filter.
_ENVIRONMENT = Environment(
    loader=PackageLoader("deepseek_operator"),
    undefined=StrictUndefined,
    autoescape=False,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["quoted"] = shlex.quote


def rendered(template: str, **values: object) -> str:
    """Return the text of `templates/<template>`; a value that the template needs and does not get is an error."""
    return _ENVIRONMENT.get_template(template).render(**values)
