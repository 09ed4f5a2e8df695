"""Classes of new texts or pictures by an exported model, answers to questions about them, or the texts that it writes."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from weft.backbones.backbone import Backbone
from weft.backbones.load import load as load_backbone
from weft.backbones.prompts import Chat, template
from weft.backbones.reply_table import Replies
from weft.backbones.run_table import Table, tabulate
from weft.backbones.short_names import KNOWN, encoders
from weft.backbones.token_table import Tokens, by_word, first_tokens
from weft.checks import tokenizers
from weft.data.bio import OUTSIDE, type_of
from weft.data.images import Images
from weft.data.rows import BOTH, Rows
from weft.data.tagged import rows_of
from weft.engines.observer import Observer
from weft.errors import UserError, nearest
from weft.export.about import About, check_hashes
from weft.export.found import Entity, Sentence, sentence
from weft.export.prompt_rows import Prompt, rows_asked
from weft.export.trained import Trained
from weft.export.write import read
from weft.federation import generating
from weft.federation.bench import Bench
from weft.storage import remedy
from weft.tasks.generation import Generation
from weft.tasks.kinds import MASKED, NEXT_ITEM, NUMBERS, SEVERAL, TOKENS
from weft.tasks.observed import Observed

if TYPE_CHECKING:
    from PIL.Image import Image

Text: TypeAlias = str | tuple[str, str] | list[str]
Picture: TypeAlias = "str | Path | bytes | np.ndarray | Image"


class Predictor:
    """A trained model: a classifier, or one that tags words, predicts numbers or writes text.

    Attributes:
        about: what it is. classes: names of the labels, in the order of the columns of :meth:`logits`.
        observer: is told of texts that the backbone does not know.
    """

    def __init__(self, trained: Trained, backbone: Backbone, about: About, observer: Observer | None = None):
        self.trained, self.backbone, self.about = trained, backbone, about
        self.classes, self.observer = about.classes, observer or Observer()

    def _only(self, types: Sequence[str]) -> Tensor:
        """[C]: 0 for tags of these types and for O, -inf for others."""
        known = list(dict.fromkeys(filter(None, map(type_of, self.classes))))
        if odd := [kind for kind in types if kind not in known]:
            raise UserError(f'this model knows no entities "{odd[0]}": it knows {", ".join(known)}.{nearest(odd[0], known)}')
        keep = [not types or tag == OUTSIDE or type_of(tag) in types for tag in self.classes]
        return torch.where(torch.tensor(keep), 0.0, -torch.inf)

    @property
    def tags_words(self) -> bool:
        """Whether it finds entities instead of giving a row its class."""
        return self.about.task == TOKENS

    @property
    def gives_numbers(self) -> bool:
        """Whether it gives each row a number instead of a class."""
        return self.about.task == NUMBERS

    @property
    def writes(self) -> bool:
        """Whether it writes text."""
        return self.about.writes

    @property
    def pictured(self) -> bool:
        """Whether it is asked about pictures."""
        return self.backbone.reads == BOTH

    @property
    def converses(self) -> bool:
        """Whether it writes text, and its template has a place for earlier turns."""
        b = self.backbone
        return self.writes and isinstance(template(b.options.prompt, b.tokenizer, b.encoder_decoder), Chat)

    def logits(self, items: Sequence[Text | Picture]) -> Tensor:
        """[n, C], float32 on the CPU.

        Args:
            items: texts, or pairs of texts for a task on pairs; or pictures: files, PIL images, uint8 pixels [h, w] or [h, w, 3],
                or encoded bytes; or pairs of a question and a picture.

        Raises:
            UserError: the model tags words, or writes text.
        """
        if self.writes:
            raise UserError("this model writes text: use generate.")
        if self.tags_words:
            raise UserError("this model tags words and gives no row a class: use entities.")
        if self.about.task == SEVERAL:
            raise UserError(
                "this model is of several tasks, and a text does not say of which: use weft eval with --data and a file of tasks."
            )
        if self.about.task == NEXT_ITEM:
            raise UserError(
                "this model ranks what comes next in a sequence of items, and these are none: use weft eval with --data."
            )
        if self.about.task == MASKED:
            raise UserError("this model finds hidden tokens and gives no row a class: its README shows how, or use weft eval.")
        return self.logits_of(OF_ITEMS[self.backbone.reads](items))

    def logits_of(self, rows: Rows) -> Tensor:
        """[n, C] on a table, or of every word in it, or of every token of its answers; its labels are not looked at.

        Raises:
            UserError: single texts for a model of pairs, or the other way round.
        """
        if not len(rows):
            return torch.zeros(0, len(self.classes))
        return self.trained.logits(self.backbone, self.about.predicts, self._table(rows), np.arange(len(rows)))

    def observe(self, rows: Rows) -> Observed:
        """What the task keeps of labelled rows, of which there are some.

        Raises:
            UserError: single texts for a model of pairs, or the other way round.
        """
        return self.trained.observe(self.backbone, self.about.predicts, self._table(rows))

    def _table(self, rows: Rows) -> Table:
        table = tabulate(self.backbone, rows, self.about.max_length)
        if isinstance(table, Replies):
            self._say_of(table)
        elif isinstance(table, Tokens):
            if self.backbone.reads == "texts":
                self._check_pairs(table.pairs)
            for note in tokenizers.known(table.reading):
                self.observer.say(note)
        return table

    def _say_of(self, table: Replies) -> None:
        for note in (*table.notes, *tokenizers.known(table.reading)):
            self.observer.say(note)

    def _check_pairs(self, given: bool) -> None:
        if self.about.pairs is None or self.about.pairs == given:  # None: written by a coordinator, or before it was noted
            return
        if self.about.pairs:
            raise UserError(
                "this model was trained on pairs of texts: give pairs, as in predict([(text, second)]), weft predict RUN TEXT "
                "SECOND, or data with a column of second texts (--pair)."
            )
        raise UserError("this model was trained on single texts, not on pairs: leave the second ones out.")

    def probabilities(self, items: Sequence[Text | Picture]) -> Tensor:
        """[n, C], each row sums to 1."""
        return torch.softmax(self.logits(items), dim=-1)

    def predict(self, items: Sequence[Text | Picture]) -> list[str]:
        """The name of the most likely class of each text or picture, its number, the entities in it or the answer to it, as the
        task is.
        """
        if self.writes:
            return self.generate(items)  # type: ignore[arg-type]
        if self.tags_words:
            return ["; ".join(f"{one.text} ({one.type})" for one in found) for found in self.entities(items)]  # type: ignore[arg-type]
        if self.gives_numbers:
            return [f"{number:.4g}" for number in self.logits(items)[:, 0].tolist()]
        return [self.classes[i] for i in self.logits(items).argmax(-1).tolist()]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        new_tokens: int | None = None,
        beams: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        streamer: Any = None,
    ) -> list[str]:
        """What a language model writes after prompts, each put into the template that it was trained with.

        A prompt is shortened only if the backbone takes no longer one, and the observer is told.

        Args:
            prompts: texts, pairs of an instruction and its input, or chats: lists of turns (role, text) that end with one of the
                ``user``; of a model that looks at pictures, pairs of a question and a picture.
            new_tokens, beams, temperature, top_p: of :class:`weft.tasks.generation_settings.Decoding`; None = as the run was
                scored.
            seed: of tokens that are drawn.
            streamer: of transformers, is handed the tokens of a single prompt as they come.

        Raises:
            UserError: the model writes no text, a prompt is something else, a chat has earlier turns that its template has no
                place for, a setting is out of its range, or a streamer is to follow several texts.
        """
        if not self.writes:
            raise UserError("this model writes no text: use predict.")
        asked: dict[str, Any] = {"new_tokens": new_tokens, "beams": beams, "temperature": temperature, "top_p": top_p}
        decoding = replace(self.about.decoding, **{n: v for n, v in asked.items() if v is not None})
        rows = to_write(prompts) if self.pictured else rows_asked(prompts)
        if streamer is not None and (len(rows) != 1 or decoding.beams > 1):
            raise UserError("a streamer follows one text as it is written: give it one prompt, and beams = 1.")
        if rows.history is not None and not self.converses:
            raise UserError(
                "the template of this model has no place for earlier turns: give texts, or pairs of an instruction and its input."
            )
        if not len(rows):
            return []
        longest = self.backbone.max_length
        if not self.backbone.encoder_decoder:  # prompt and answer lie in one row
            longest -= min(decoding.new_tokens, longest // 4)
        table = tabulate(self.backbone, rows, longest)
        assert isinstance(table, Replies)
        if table.notes:
            self.observer.say(
                "what is longer than this backbone takes is shortened: a chat by its oldest turns, a text at its end."
            )
        self._say_of(replace(table, notes=()))
        task = Generation(self.classes)  # whatever the model was tuned by
        pack = self.trained.on(Bench(self.backbone, task, table, seed=seed))
        return generating.write(pack, self.trained.forward, [np.arange(len(rows))], decoding, streamer)[0]

    def entities(self, items: Sequence[Sentence], types: Sequence[str] = ()) -> list[list[Entity]]:
        """The entities that a model of tags finds in texts, in their order.

        Args:
            items: texts, which are cut into words and punctuation, or lists of words.
            types: of entities to look for, as those that one of the federation's data sets has; none = all.

        Raises:
            UserError: the model does not tag words, or knows no such type, or an item is neither text nor words.
        """
        if not self.tags_words:
            what = "writes text" if self.writes else "gives each row a class"
            raise UserError(f"this model {what} and finds no entities: use {'generate' if self.writes else 'predict'}.")
        given = [sentence(item) for item in items]
        if not given:
            return []
        rows = rows_of([one.words for one in given], [np.zeros(len(one.words), dtype=np.int64) for one in given])
        tags = [self.classes[i] for i in (self.logits_of(rows) + self._only(types)).argmax(-1).tolist()]
        seen = by_word(self.backbone.tokenizer, [one.words for one in given], self.about.max_length, self.backbone.name)
        found = []
        for i, one in enumerate(given):
            tagged = first_tokens(seen.word_ids(i))[:, 0].tolist()
            own, tags = dict(zip(tagged, tags, strict=False)), tags[len(tagged) :]
            found.append(one.entities([own.get(word, OUTSIDE) for word in range(len(one.words))]))
        return found


def table_of(texts: Sequence[Any]) -> Rows:
    """Texts, or pairs of them, as an unlabelled table.

    Raises:
        UserError: something else than a list of texts, or of pairs.
    """
    if isinstance(texts, str):
        raise UserError("give a list of texts, even for a single one: predict([text]).")
    items = list(texts)
    pairs = [t for t in items if isinstance(t, (tuple, list)) and len(t) == 2 and all(isinstance(s, str) for s in t)]
    plain = [t for t in items if isinstance(t, str)]
    if len(plain) != len(items) and len(pairs) != len(items):
        raise UserError("texts must be all texts, or all pairs of two texts.")
    first, second = (plain, None) if plain or not items else ([p[0] for p in pairs], [p[1] for p in pairs])
    return Rows(first, second, np.zeros(len(items), np.int64), np.arange(len(items)))


def pictures_of(items: Sequence[Any]) -> Rows:
    """Pictures as an unlabelled table.

    Raises:
        UserError: something else than a list of pictures.
    """
    images = Images(items)
    return Rows(None, None, np.zeros(len(images), np.int64), np.arange(len(images)), images=images)


def questions_of(items: Sequence[Any]) -> Rows:
    """Questions about pictures as an unlabelled table.

    Raises:
        UserError: something else than a list of pairs of a text and a picture.
    """
    asked = list(items)
    if odd := [one for one in asked if not (isinstance(one, tuple | list) and len(one) == 2 and isinstance(one[0], str))]:
        raise UserError(f"give a question and a picture of each row, as in predict([(question, picture)]), not {odd[0]!r:.60}.")
    images, none = Images([picture for _, picture in asked]), np.zeros(len(asked), np.int64)
    return Rows(texts=[question for question, _ in asked], images=images, labels=none, ids=np.arange(len(asked)))


def to_write(items: Sequence[Any]) -> Rows:
    """Questions about pictures whose answers are to be written.

    Raises:
        UserError: something else than a list of pairs of a text and a picture.
    """
    return replace(questions_of(items), answers=[""] * len(items))


OF_ITEMS = {"texts": table_of, "images": pictures_of, BOTH: questions_of}


def load(
    folder: str | Path,
    *,
    base: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    trust_remote_code: bool = False,
    observer: Observer | None = None,
) -> Predictor:
    """Load a model that :func:`weft.export.export` wrote, from its folder or from the folder of its run.

    Args:
        base: where the frozen base is, if not where it was at the time: short name, hub id or folder.
        device, precision: of the base, see :func:`weft.backbones.load.load`.
        observer: is told what is doubtful about the model, and of texts that it does not know.

    Raises:
        UserError: no such model, a damaged one, or a base with other weights than it was trained on.
    """
    path = model_folder(Path(folder).expanduser())
    about = About.read(path)
    observer = observer or Observer()
    for note in (*check_hashes(path, about), *filter(None, [about.unlearnt])):
        observer.say(note)
    name = base or (about.base.name if about.base.name in KNOWN else about.base.reference)
    places = encoders(about.base.path or "") if base is None else []
    gone = [os.path.isabs(place) and not os.path.exists(place) for place in places]
    if any(gone):
        now = "+".join("PATH" if lost else one for one, lost in zip(encoders(about.base.name), gone, strict=False))
        raise UserError(
            f"the base of this model was in {places[gone.index(True)]}, which is gone: say where it is now, as "
            f"--base {shlex.quote(now)}."
        )
    backbone = load_backbone(
        name,
        classes=about.classes,
        device=device,
        precision=precision,
        trust_remote_code=trust_remote_code,
        **asdict(about.base.options),
    )
    if backbone.weight_hash != about.base.sha256:
        raise UserError(
            f'the weights of "{name}" (sha256 {backbone.weight_hash[:12]}…) are not those that this model was trained on '
            f"({about.base.sha256[:12]}…), so it would predict at random: give the right base."
        )
    return Predictor(read(path, about, backbone), backbone, about, observer)


def model_folder(folder: Path) -> Path:
    """The exported model in a run's folder, or the folder itself.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give the folder of a run or of an exported model.")
    remedy.check_begun(folder)
    if (folder / "experiment.toml").is_file():
        if not (folder / "adapter").is_dir():
            way = remedy.command(folder) or f"weft resume {folder}"
            raise UserError(f"{folder} has no trained model yet: finish it with {way}.")
        return folder / "adapter"
    return folder


def predict(folder: str | Path, items: Sequence[Text | Picture]) -> list[str]:
    """Classes of texts or pictures by the model in a run's or an exported model's folder; it stays loaded for the next call.

    Raises:
        UserError: see :func:`load`.
    """
    path = model_folder(Path(folder).expanduser())
    About.read(path)
    return _loaded(path.resolve(), (path / "weft.json").stat().st_mtime_ns).predict(items)


def generate(folder: str | Path, prompts: Sequence[Prompt], **how: Any) -> list[str]:
    """Texts by the model in a run's or an exported model's folder; it stays loaded for the next call.

    Args:
        how: see :meth:`Predictor.generate`.

    Raises:
        UserError: see :func:`load` and :meth:`Predictor.generate`.
    """
    path = model_folder(Path(folder).expanduser())
    About.read(path)
    return _loaded(path.resolve(), (path / "weft.json").stat().st_mtime_ns).generate(prompts, **how)


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, _written: int) -> Predictor:
    return load(folder)
