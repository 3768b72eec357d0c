"""The forms in which every report can be had, made of its text, its data and its drawing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from surgery.reports.dot import dot_of
from surgery.reports.drawing import Drawing
from surgery.reports.page import page_of
from surgery.reports.terminal import painted

if TYPE_CHECKING:
    from rich.text import Text


class Report:
    """Something that is read: ``str`` is its text, and :meth:`as_dict` its data."""

    def __rich__(self) -> Text:
        return painted(str(self))

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON data."""
        raise NotImplementedError

    def as_json(self) -> str:
        """:meth:`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=False)


class DrawnReport(Report):
    """One of a model, which can be drawn as well."""

    @property
    def drawing(self) -> Drawing:
        """The model as nested boxes and arrows, which the forms below write down."""
        raise NotImplementedError

    def as_dot(self) -> str:
        """The model as a graph in the DOT language of Graphviz, with what the report says of it.

        Raises:
            SurgeryError: S560 if the model has other parameters by now.

        """
        return dot_of(self.drawing)

    def as_html(self) -> str:
        """The model as one HTML file, in which modules fold; it loads nothing from elsewhere.

        Raises:
            SurgeryError: S560 if the model has other parameters by now.

        """
        return page_of(self.drawing)
