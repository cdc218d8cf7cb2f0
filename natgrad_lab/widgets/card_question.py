"""The question that a card asks before it shows anything."""

from typing import Any

import ipywidgets as ipw

from natgrad_lab.course.card import Card
from natgrad_lab.widgets import card_text
from natgrad_lab.widgets.card_predictions import read_number


class CardQuestion(ipw.VBox):
    """A question with options or a field for a number, and the buttons Commit and Show me."""

    def __init__(self, card: Card):
        """Nothing is chosen."""
        options = card.prediction.options
        if options is None:
            self.field = ipw.Text(placeholder="a number", layout={"width": "12em"})
        else:
            self.field = ipw.RadioButtons(options=list(options), value=None, layout={"width": "auto"})
        self.commit = ipw.Button(description="Commit", icon="check", button_style="primary", tooltip="keep this prediction")
        self.show_me = ipw.Button(description="Show me", tooltip="without a prediction")
        self.note = ipw.HTML()
        field = [self.field] if options else [ipw.HBox([self.field, ipw.Label(card.prediction.unit)])]
        buttons = ipw.HBox([self.commit, self.show_me], layout={"flex_flow": "row wrap", "grid_gap": "4px 8px"})
        super().__init__([ipw.HTML(card_text.question(card)), *field, buttons, self.note])
        self.add_class("natgrad-card-predict")

    def said(self) -> Any | None:
        """What is predicted; None, and a remark to the reader, if that is nothing yet or no number."""
        try:
            said = self.field.value if isinstance(self.field, ipw.RadioButtons) else read_number(self.field.value)
        except ValueError as error:
            self.note.value = card_text.note(str(error))
            return None
        self.note.value = card_text.note("" if said is not None else "Choose one first, or press Show me.")
        return said
