"""A coordinator and sites that see nothing of each other but bytes: who is let in, who is not, and what a restart keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
import weft
from command_line import table
from machines import CLASSES, Machines, coordinate, experiment
from toy_runs import Dies, Killed, Told
from weft import experiment as settings
from weft.communication.envelope import unwrap, wrap
from weft.communication.ledger import Ledger
from weft.errors import Elsewhere, UserError
from weft.runs import listing
from weft.runs.checkpoint import Checkpoint, digest
from weft.sites.reasons import Reason
from weft.sites.terms import Terms


def test_a_federation_of_sites_ends_with_an_adapter_and_tells_who_took_part(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")
    told = Told()
    done = coordinate(machines, told)
    assert done.summary["finished"]
    assert done.adapter is None or done.adapter.is_dir()
    assert [line["cohort"] for line in done.rounds] == [["north", "south"]] * 3
    assert {s["id"]: s["n"] for s in done.summary["served"]["sites"]} == {"north": 43, "south": 43}
    people = {(e["view"], e["people"]) for e in done.rounds[-1]["evaluations"]}
    assert ("personal", "own test") in people
    assert any("north is here" in s for s in told.sentences)


def test_a_site_that_was_started_again_goes_on_with_what_it_remembers_and_a_coordinator_too(machines: Machines) -> None:
    """Both ends are thrown away in the middle, and nothing of the numbers is."""
    machines.join("north")
    machines.join("south")
    steady = digest(coordinate(machines).folder)
    shutil.rmtree(machines.root / "runs")
    machines.join("north")
    machines.join("south")
    for site in (machines.root / "sites").iterdir():
        shutil.rmtree(site)

    with pytest.raises(Killed):
        coordinate(machines, Dies(after=1))
    machines.join("north")  # anew, from its folder
    machines.join("south")
    told = Told()
    again = coordinate(machines, told)
    assert any("going on with" in s for s in told.sentences)
    assert digest(again.folder) == steady


def test_a_tracker_is_told_of_a_federation_of_sites_as_of_any_run(machines: Machines) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    machines.join("north")
    machines.join("south")
    with pytest.raises(Killed):
        coordinate(machines, Dies(after=1), track=["tensorboard"])
    machines.join("north")
    machines.join("south")
    done = coordinate(machines, track=["tensorboard"])
    events = EventAccumulator(str(done.folder / "tracking" / "tensorboard"))
    events.Reload()
    rows = [(row["round"], row["bytes_up"]) for row in done.records() if row["view"] in ("personal", None)]
    assert [(e.step, e.value) for e in events.Scalars("bytes_up")] == rows
    (run,) = (listing.listed(path, machines.root / "runs") for path in listing.folders(machines.root / "runs"))
    assert (run.state, run.rounds, run.planned) == ("finished", 3, 3)


def test_a_probe_starts_the_head_of_sites_too(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")
    done = coordinate(machines, method="fedit", start_head="probe", probe_rounds=2)
    assert done.summary["bytes"]["setup"]["up"]["payload"] > 0
    # the probe's head went to the sites as start values
    kept = list((machines.root / "sites" / "north").glob("*/rounds/start"))
    assert len(kept) == 1
    assert kept[0].stat().st_size > 100


def test_a_coordinator_loads_its_public_rows_itself_and_sites_hear_nothing_of_them(machines: Machines) -> None:
    path = table(machines.root / "public.csv", 20, seed=5)
    heard: list[bytes] = []

    def watched(address: str, raw: bytes) -> bytes:
        heard.append(raw)
        return raw

    machines.watch = watched
    asked: list[bytes] = []
    post = machines.post
    machines.post = lambda questions, deadline: (asked.extend(questions.values()), post(questions, deadline))[1]  # type: ignore[method-assign]
    machines.join("north")
    machines.join("south")
    small = {"method.rank": 2, "method.batch": 4, "method.steps": 2, "method.first_steps": 3, "method.lr": 0.1}
    about = small | {"method": "fedbiot", "method.adapter_blocks": 1, "public": str(path), "public_rows": 8}
    told = Told()
    steady = coordinate(machines, told, **about)
    assert steady.summary["data"]["public"]["rows"] == 8
    assert "public rows: 8 rows of public.csv, at the server alone." in told.sentences
    assert steady.summary["bytes"]["train"]["down"]["parts"]["emulator"] > 0
    assert asked
    assert not [raw for raw in (*asked, *heard) if b"public" in raw]
    shutil.rmtree(machines.root / "runs")
    for site in (machines.root / "sites").iterdir():
        shutil.rmtree(site)
    for name in ("north", "south"):
        machines.join(name)
    with pytest.raises(Killed):
        coordinate(machines, Dies(after=1), **about)
    assert digest(coordinate(machines, **about).folder) == digest(steady.folder)
    with pytest.raises(UserError, match=r'public.csv has the label "class 2", which is none of the classes'):
        coordinate(machines, **about | {"classes": ["class 0", "class 1"], "name": "other"})


def test_start_values_that_go_out_again_are_billed_again(machines: Machines) -> None:
    """A coordinator that was started again lets its sites in again."""

    def handed_over(run: weft.Run) -> tuple[int, int]:
        saved = Checkpoint(run.folder / "checkpoint").load()
        assert saved is not None
        total = Ledger.from_records(saved.ledger).totals(phase="setup", direction="down")
        return total.messages, total.payload

    about: dict[str, Any] = {"method": "fedit", "start_head": "probe", "probe_rounds": 2}
    for name in ("north", "south"):
        machines.join(name)
    messages, payload = handed_over(coordinate(machines, name="steady", **about))
    assert messages == 2
    with pytest.raises(Killed):
        coordinate(machines, Dies(after=1), **about)
    assert handed_over(coordinate(machines, **about)) == (2 * messages, 2 * payload)


@pytest.mark.parametrize("name", ["agreed.json", "rounds/admitted.json", "rounds/start"])
def test_a_changed_byte_in_what_a_site_was_told_is_said_at_the_site(name: str, machines: Machines) -> None:
    for site in ("north", "south"):
        machines.join(site)
    run = coordinate(machines, method="fedit", start_head="probe", probe_rounds=1).summary["served"]["run"]
    file = machines.root / "sites" / "north" / run / name
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    machines.join("north")  # anew, from its folder
    about, _ = unwrap(machines.sites["at north"].answer(wrap({"what": "ask", "run": run, "stage": "rounds"})))
    assert about == {"refused": Reason.TROUBLE}
    (said,) = [s for s in machines.said["at north"] if "damaged" in s]
    assert str(file) in said
    assert "remove the folder" in said


def test_a_site_may_have_rows_of_one_class_only(machines: Machines) -> None:
    machines.join("north")
    rows = Path(machines.about("south")["data"])
    table(rows)
    head, *lines = rows.read_text().splitlines()
    rows.write_text("\n".join([head, *(line for line in lines if line.endswith(CLASSES[1]))]) + "\n")
    machines.join("south")
    done = coordinate(machines)
    assert [line["cohort"] for line in done.rounds] == [["north", "south"]] * 3
    assert [line["lost"] for line in done.rounds] == [[]] * 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rounds": 4}, "rounds is 3 at the coordinator and 4 here: use the same experiment file."),
        ({"method.rank": 4}, "method.rank is 2 at the coordinator and 4 here"),
        ({"classes": [*CLASSES[:2], "class 9"]}, "classes is "),
        ({"codec": "quant8"}, "codec is"),
        ({"model": "/home/me/models/secret"}, 'and "/home/me/models/secret" here'),
    ],
)
def test_a_site_with_another_experiment_is_turned_away_by_the_names_of_what_differs(
    machines: Machines, change: dict[str, Any], sentence: str
) -> None:
    mine = settings.resolve(experiment(machines, **change)).experiment
    file = machines.root / "mine.toml"
    file.write_text(settings.to_toml(mine, {}))
    machines.join("north")
    machines.join("south")
    machines.join("other", experiment=str(file))
    told = Told()
    done = coordinate(machines, told)
    name = next(iter(change))
    words = f"it refuses: its own experiment file says otherwise about {name}: use the same experiment file."
    assert f"other does not take part: {words}" in told.sentences
    assert all("other" not in line["cohort"] for line in done.rounds)
    assert any(sentence in s for s in machines.said["at other"])


@pytest.mark.parametrize(
    ("method", "facts", "sentence"),
    [
        ("hetlora", {"rank": 7}, "client odd has the rank 7: give it one from 1 to method.rank = 4."),
        ("hetlora", {"rank": "two"}, "client odd has the rank two: give it one from 1 to method.rank = 4."),
        ("legend", {"speed": 0.0}, "client odd has speed = 0.0: give it a number above 0."),
        ("flora", {"rank": "two"}, "its facts are none that flora can have."),
    ],
)
def test_a_site_whose_facts_a_method_cannot_have_is_turned_away_and_the_others_go_on(
    machines: Machines, method: str, facts: dict[str, Any], sentence: str
) -> None:
    """Of a site that does not look at its own facts."""
    machines.join("north")
    machines.join("south")
    machines.join("odd")
    machines.watch = lambda address, raw: telling(raw, facts) if address == "at odd" else raw
    told = Told()
    more = {"hetlora": {"method.rank": 4, "method.least": 1}, "flora": {"method.rank": 2}, "legend": {"method.rank": None}}
    done = coordinate(machines, told, method=method, rounds=2, **more[method])
    assert f"odd does not take part: {sentence}" in told.sentences
    assert [line["cohort"] for line in done.rounds] == [["north", "south"]] * 2


def telling(raw: bytes, facts: dict[str, Any]) -> bytes:
    """A site's answer to a greeting with other facts."""
    about, data = unwrap(raw)
    return wrap(about | {"facts": facts}, data) if "facts" in about else raw


def test_another_version_and_other_weights_are_told_by_name(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny.folder("bert", hidden_size=48)
    machines.join("north")
    machines.join("south")
    machines.join("odd", model=other)
    told = Told()
    coordinate(machines, told)
    assert "odd does not take part: it refuses: its backbone has other weights: get the same; its log says which." in (
        told.sentences
    )
    assert any("by the hash of its weights" in s and "get the same weights" in s for s in machines.said["at odd"])

    terms = Terms.of("0" * 32, settings.resolve(experiment(machines)).experiment)
    with pytest.raises(UserError, match=r"the coordinator runs Weft 0\.0\.0, and this site Weft"):
        Terms(terms.run, "0.0.0", terms.common, {}).resolved({})


def test_an_unknown_label_is_named_at_the_site_alone(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")
    rows = Path(machines.about("odd")["data"])
    rows.write_text(rows.read_text().replace("class 2", "class 9"))
    machines.join("odd")
    told = Told()
    coordinate(machines, told)
    assert any('odd.csv has the label "class 9", which is none of the classes' in s for s in machines.said["at odd"])
    assert [s for s in told.sentences if s.startswith("odd ")] == [
        "odd does not take part: it refuses: its rows have a label that the experiment does not declare; its log says which."
    ]


def test_what_is_amiss_at_a_site_is_told_there_alone(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    machines.join("north")
    machines.join("south")
    machines.join("odd", device="cuda")
    told = Told()
    coordinate(machines, told)
    assert any("odd does not take part: it refuses: something is amiss with its own data or machine" in s for s in told.sentences)
    assert any("cuda" in s for s in machines.said["at odd"])


def test_a_site_can_neither_take_a_name_that_its_key_does_not_prove_nor_one_that_is_taken(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")
    machines.join("north", address="elsewhere", proven=None)
    machines.join("south", address="liar", proven="east")
    told = Told()
    done = coordinate(machines, told)
    assert any("another site with this name is here already" in s for s in told.sentences)
    assert any('calls itself "south", but its key is that of "east"' in s for s in told.sentences)
    why = "the coordinator does not let this site take part: "
    assert [s for s in machines.said["elsewhere"] if why in s] == [
        f"{why}another site with this name is here already: give each a --name of its own."
    ]
    assert [s for s in machines.said["liar"] if why in s] == [
        f'{why}it calls itself "south", but its key is that of "east": give it --name east.'
    ]
    assert not any(why in s for name in ("north", "south") for s in machines.said[f"at {name}"])
    assert {s["id"] for s in done.summary["served"]["sites"]} == {"north", "south"}


def test_sites_whose_keys_change_names_are_greeted_again(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")

    class Swapping(Told):
        def round_done(self, record: dict[str, Any]) -> None:
            super().round_done(record)
            if record["round"] == 0:
                machines.names |= {"at north": "south", "at south": "north"}

    told = Swapping()
    with pytest.raises(Elsewhere, match="no site has been there"):
        coordinate(machines, told, rounds=6)
    assert any("north has gone" in s for s in told.sentences)
    assert any('it calls itself "north", but its key is that of "south"' in s for s in told.sentences)


def test_a_silent_site_is_left_out_and_a_late_one_joins(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")

    class Watching(Told):
        def round_done(self, record: dict[str, Any]) -> None:
            super().round_done(record)
            if record["round"] == 0:
                machines.silent = {"at south"}
                machines.join("late")
            if record["round"] == 2:
                machines.silent = set()

    told = Watching()
    done = coordinate(machines, told, rounds=6)
    assert any("south did not answer in round 2" in s for s in told.sentences)
    assert any("late joins in round" in s for s in told.sentences)
    assert done.rounds[-1]["cohort"] == ["late", "north", "south"]
    assert "late" in {s["id"] for s in done.summary["served"]["sites"]}
    updates = [line["bytes"]["train"]["up"]["messages"] for line in done.rounds]
    assert updates[0] == 2
    assert updates[-1] == 3


def test_a_site_whose_rows_have_changed_since_the_run_began_stays_out(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")

    with pytest.raises(Killed):
        coordinate(machines, Dies())
    rows = Path(machines.about("south")["data"])
    rows.write_text("\n".join(rows.read_text().splitlines()[:-3]) + "\n")
    machines.join("north")
    machines.join("south")
    told = Told()
    done = coordinate(machines, told)
    assert done.summary["finished"]
    assert any("south" in s and ("refuses" in s or "did not answer" in s) for s in told.sentences)
    assert any("the rows are not those that this run was begun with" in s for s in machines.said["at south"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"classes": None}, "has to declare its label set"),
        ({"baselines": ["local"]}, "leave baseline"),
        ({"dropout": 0.5}, "are for simulations"),
        ({"metrics": ["macro_f1"]}, "set class_counts = true"),
        ({"metrics": ["acuracy"]}, 'Did you mean "accuracy"'),
    ],
)
def test_what_a_coordinator_can_not_have_is_refused_at_once(machines: Machines, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        coordinate(machines, **change)
    assert not (machines.root / "runs").exists()


def test_an_unfinished_run_is_not_continued_with_other_settings(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")

    with pytest.raises(Killed):
        coordinate(machines, Dies())
    with pytest.raises(UserError, match="is an unfinished run with another rounds"):
        coordinate(machines, rounds=9)
    with pytest.raises(UserError, match="weft serve with the same experiment file goes on with it"):
        weft.resume(machines.root / "runs" / "run")


@pytest.mark.parametrize("raw", [b"", b"\x00", b"\xff" * 40, b"\x02\x00\x00\x00{}", b'\x10\x00\x00\x00{"what": "hello"}'])
def test_a_site_answers_nonsense_with_a_sentence(machines: Machines, raw: bytes) -> None:
    machines.join("north")
    said = machines.sites["at north"].answer(raw)
    assert b"refused" in said or b"stranger" in said


@pytest.mark.parametrize("strange", ["device", "trust_remote_code", "data", "runs"])
def test_a_coordinator_can_not_settle_what_is_a_sites_own(machines: Machines, strange: str) -> None:
    terms = Terms.of("0" * 32, settings.resolve(experiment(machines)).experiment)
    with pytest.raises(UserError, match=f"would settle '{strange}'"):
        Terms(terms.run, terms.weft, terms.common | {strange: True}, {}).resolved({})
