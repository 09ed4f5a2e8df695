"""What a site says in words is a closed list: whatever goes wrong with its rows, files and folders, it alone hears what."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from machines import CLASSES, Machines, coordinate, experiment
from toy_runs import Told, light
from weft import experiment as settings
from weft.communication.envelope import unwrap, wrap
from weft.communication.strict import Refused
from weft.data.labels import UnknownLabel
from weft.engines import site as engine
from weft.engines.site import Behind, SiteClient
from weft.errors import UserError, WeftError
from weft.sites import asked, resident
from weft.sites.own_rows import OwnData
from weft.sites.reasons import Disagreed, Reason, refusal
from weft.sites.terms import Terms
from weft.storage import files
from weft.tasks.classification import Classification

SECRET = "Ada Lovelace, born 1815-12-10"
ERRORS: list[Callable[[], Exception]] = [
    lambda: UserError(SECRET),
    lambda: UnknownLabel(SECRET),
    lambda: Disagreed(Reason.WEIGHTS, SECRET, [SECRET]),
    lambda: Refused(SECRET),
    lambda: Behind(SECRET),
    lambda: WeftError(SECRET),
    lambda: OSError(28, SECRET, SECRET),
    lambda: KeyError(SECRET),
    lambda: RuntimeError(SECRET),
    lambda: UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
]
STAGES: list[tuple[Any, str]] = [
    (OwnData, "client"),
    (resident, "print_of"),
    (resident, "differences"),
    (resident, "backbone_of"),
    (resident, "bench_of"),
    (resident, "suited"),
    (resident, "SiteClient"),
    (resident, "decode"),
    (asked.Asked, "begin"),
    (asked.Asked, "agreed"),
    (files, "make_folder"),
    (files, "write"),
    (files, "write_sealed"),
    (files, "read_sealed"),
    (SiteClient, "turn"),
    (SiteClient, "scores"),
    (SiteClient, "_train"),
    (SiteClient, "_save"),
    (engine, "read_download"),
    (engine, "write_update"),
    (Classification, "tell"),
    (engine, "enter"),
]


def said_of(words: str) -> bool:
    """Whether these are words that a site may say."""
    fixed = [r.value.split("{")[0] for r in Reason]
    return any(words.startswith(f) for f in fixed)


@pytest.mark.parametrize(("where", "name"), STAGES, ids=[f"{w.__name__.split('.')[-1]}.{n}" for w, n in STAGES])
def test_the_words_of_no_error_at_any_stage_of_a_site_reach_the_coordinator(
    where: Any,
    name: str,
    machines: Machines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each question of a short run meets each kind of error at one place, at a site that knows the run and one that does not."""
    light(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    about: dict[str, Any] = {"rounds": 1, "start_head": "probe", "probe_rounds": 1, "method": "fedit"}
    file = machines.root / "mine.toml"
    file.write_text(settings.to_toml(settings.resolve(experiment(machines, **about)).experiment, {}))
    machines.join("north")
    machines.join("south")
    questions: list[bytes] = []
    post = machines.post
    machines.post = lambda q, d: (questions.extend(v for a, v in q.items() if a == "at north"), post(q, d))[1]  # type: ignore[method-assign, func-returns-value]
    coordinate(machines, **about)
    assert [unwrap(q)[0]["what"] for q in questions] == ["hello", "admit", "ask", "ask", "admit", "ask", "ask", "bye"]
    thrown = 0
    for place in ("north", "anew"):  # what it remembers of the run, or nothing
        machines.join("north", folder=str(machines.root / "sites" / place), experiment=str(file))
        site = machines.sites["at north"]
        for error in ERRORS:

            def fails(*_: Any, error: Callable[[], Exception] = error, **__: Any) -> Any:
                nonlocal thrown
                thrown += 1
                raise error()

            with monkeypatch.context() as patch:
                patch.setattr(where, name, fails)
                for raw in questions:
                    answer = site.answer(raw)
                    assert SECRET.encode() not in answer
                    assert b"1815" not in answer
                    assert str(machines.root).encode() not in answer
                    head, _ = unwrap(answer)
                    assert "refused" not in head or said_of(head["refused"])
            if site.run is not None:
                site.run.stage = None
    assert thrown, f"{name} is passed by no question"
    assert any(SECRET in s for s in machines.said["at north"])  # and is said here


def test_a_refusal_tells_no_name_of_a_setting_that_the_coordinator_did_not_send() -> None:
    about, _ = unwrap(refusal(Reason.SETTINGS, ["rounds", SECRET, "method.rank"], {"rounds": 1, "method.rank": 2}))
    assert about["refused"] == "its own experiment file says otherwise about rounds, method.rank: use the same experiment file."
    with pytest.raises(ValueError):
        refusal(SECRET)  # type: ignore[arg-type]


def test_rows_whose_label_column_was_guessed_wrongly_leave_no_trace_at_the_coordinator(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")
    rows = machines.root / "patients of ward 7.csv"
    rows.write_text("text,label\n" + "\n".join(f"a note {i},{SECRET.split(',')[0]} {i}" for i in range(20)) + "\n")
    heard: list[bytes] = []
    machines.watch = lambda a, raw: (heard.append(raw) if a == "at odd" else None, raw)[1]  # type: ignore[func-returns-value]
    machines.join("odd", data=str(rows))
    told = Told()
    coordinate(machines, told)
    assert any("patients of ward 7.csv" in s and "Ada Lovelace" in s for s in machines.said["at odd"])
    assert heard
    for raw in [*heard, "\n".join(told.sentences).encode()]:
        assert not any(word in raw for word in (b"Ada", b"Lovelace", b"ward", b"patients", b"csv"))
    assert any("a label that the experiment does not declare" in s for s in told.sentences)


def test_flowers_own_processes_tell_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flower sends the words of an error of an app, so none may leave it."""
    from types import SimpleNamespace

    from weft.sites import flower_app

    config: Any = SimpleNamespace(node_config={"site": str(tmp_path / SECRET)})
    about, _ = unwrap(flower_app._answered(SimpleNamespace(), config))  # type: ignore[arg-type]
    assert about == {"refused": Reason.TROUBLE}
    assert SECRET in capsys.readouterr().err


# a curious coordinator ------------------------------------------------------------------------------------------------------


def hello(machines: Machines, number: int = 0, **changes: Any) -> bytes:
    resolved = settings.resolve(experiment(machines, **changes))
    from weft.backbones.load import load

    weights = {tiny.folder("bert"): load(tiny.folder("bert"), classes=resolved.experiment.classes, device="cpu").weight_hash}
    terms = Terms.of(f"{number:032x}", resolved.experiment)
    return wrap({"what": "hello"} | terms.as_json() | {"weights": weights})


def refused(raw: bytes) -> str:
    return str(unwrap(raw)[0].get("refused", ""))


def test_a_site_answers_for_the_set_of_classes_that_it_was_asked_with_first(machines: Machines) -> None:
    """Whether the labels are among some is told by agreeing: a coordinator with a dictionary would find them all out."""
    machines.join("north")
    ask = lambda n, classes: refused(machines.sites["at north"].answer(hello(machines, n, classes=classes)))  # noqa: E731
    assert ask(1, CLASSES[:2]) == Reason.LABEL
    assert ask(2, CLASSES) == Reason.CLASSES
    machines.join("north")  # anew, from its folder
    assert ask(3, CLASSES) == Reason.CLASSES
    assert ask(4, CLASSES[:2]) == Reason.LABEL
    assert any("asked.json" in s and "class 2" in s for s in machines.said["at north"])
    file = machines.root / "mine.toml"
    file.write_text(settings.to_toml(settings.resolve(experiment(machines)).experiment, {}))
    machines.join("north", experiment=str(file))  # a person has declared them
    assert ask(5, CLASSES) == ""
    assert ask(6, CLASSES[:2]) == Reason.SETTINGS.value.format(names=" about classes")


def test_an_order_of_classes_is_a_set_of_its_own_and_other_settings_are_none(machines: Machines) -> None:
    machines.join("north")
    site = machines.sites["at north"]
    assert refused(site.answer(hello(machines, 1))) == ""
    assert refused(site.answer(hello(machines, 2, rounds=7))) == ""
    assert refused(site.answer(hello(machines, 3, classes=CLASSES[::-1]))) == Reason.CLASSES


def test_a_site_refuses_a_bounded_number_of_experiments_and_remembers_it(machines: Machines) -> None:
    rows = Path(machines.about("north")["data"])
    rows.write_text(rows.read_text().replace("class 2", "class 9"))
    machines.join("north")
    questions = [hello(machines, n, rounds=n + 1) for n in range(asked.LIMIT + 1)]
    site = machines.sites["at north"]
    for raw in questions[:-1]:
        assert refused(site.answer(raw)) == Reason.LABEL
        assert refused(site.answer(raw)) == Reason.LABEL  # the same again, as every half minute, is no other
    assert refused(site.answer(hello(machines, 1000, rounds=1))) == Reason.LABEL  # nor under the number of another run
    assert refused(site.answer(questions[-1])) == Reason.OFTEN
    machines.join("north")
    assert refused(machines.sites["at north"].answer(questions[-1])) == Reason.OFTEN
    rows.write_text(rows.read_text().replace("class 9", "class 2"))
    machines.join("north")  # its rows were put right
    assert refused(machines.sites["at north"].answer(questions[0])) == ""
    assert refused(machines.sites["at north"].answer(questions[-1])) == ""  # one of those refused was not, after all
