"""A conversation with a language model: what was said so far, and its answers as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TextStreamer

from weft.errors import UserError
from weft.export.predictor import Predictor


class Conversation:
    """Turns of a user and a model; of a model whose template has no place for earlier turns, each question stands alone.

    Attributes:
        turns: (role, text) so far.

    Args:
        system: what the model is told before all turns. new_tokens, temperature: see :meth:`Predictor.generate`; text that is
            shown as it comes is not searched for by beams.

    Raises:
        UserError: the model writes no text, or has no place for what it is told.
    """

    def __init__(self, model: Predictor, system: str = "", new_tokens: int | None = None, temperature: float | None = None):
        if not model.writes:
            raise UserError("this model writes no text, so there is nothing to talk about: use weft predict.")
        if model.pictured:
            raise UserError("this model is asked about pictures, one question each: use weft predict RUN QUESTION PICTURE.")
        if system and not model.converses:
            raise UserError("the template of this model has no place for a system's words: leave --system out.")
        self.model, self.system = model, system
        self.how: dict[str, Any] = {"new_tokens": new_tokens, "temperature": temperature, "beams": 1}
        self.asked = 0
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        self.turns: list[tuple[str, str]] = [("system", self.system)] if self.system else []

    def answer(self, text: str, show: Callable[[str], object]) -> str:
        """Ask, and hear.

        Ctrl-C stops the answer; what was shown of it counts as said.

        Args:
            show: is handed the answer's pieces as they come.
        """
        prompt: Any = [*self.turns, ("user", text)] if self.model.converses else text
        pieces = Pieces(self.model.backbone.tokenizer, show)
        self.asked += 1  # whoever asks the same again is not told the same again, where tokens are drawn
        try:
            (said,) = self.model.generate([prompt], seed=self.asked, streamer=pieces, **self.how)
        except KeyboardInterrupt:
            if pieces.shown:
                self._note(text, pieces.shown)
            raise
        self._note(text, said)
        return said

    def _note(self, text: str, said: str) -> None:
        if self.model.converses:
            self.turns += [("user", text), ("assistant", said)]


class Pieces(TextStreamer):
    """Hands on the pieces of an answer, without blanks at its beginning and its end.

    Attributes:
        shown: so far.
    """

    def __init__(self, tokenizer: Any, show: Callable[[str], object]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show, self.shown, self.held = show, "", ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        whole = self.held + text
        kept = whole.rstrip()
        self.held = whole[len(kept) :]  # until something follows it
        piece = kept if self.shown else kept.lstrip()
        if piece:
            self.shown += piece
            self.show(piece)
