"""The process of a site that stays: it holds the backbone and the rows, and answers bytes with bytes.

It is greeted once by each run's coordinator (``hello``: do we agree?), let in for each stage of the run (``admit``: the head's
probe is one, the method's own rounds another), and asked from then on.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from weft import experiment as settings
from weft.communication.codecs import codec
from weft.communication.envelope import unwrap, wrap
from weft.communication.frame import Expected
from weft.communication.ledger import format_bytes
from weft.communication.strict import Refused, plain
from weft.communication.wire import decode
from weft.data import several
from weft.data.labels import UnknownLabel
from weft.data.rows import ClientData, Rows
from weft.engines.question import TEST, TRAIN, Question, answer
from weft.engines.site import SiteClient
from weft.errors import UserError
from weft.experiment import Experiment, hidden
from weft.federation.bench import Bench
from weft.federation.client import ClientState, Splits
from weft.federation.common_facts import nobody
from weft.federation.exchange import START, Limits
from weft.federation.layout import named
from weft.federation.method import Method
from weft.federation.rounds import adapted
from weft.runs import baselines
from weft.runs.arriving import arriving, held
from weft.runs.beginning import digest
from weft.runs.prepare import backbone_of, bench_of, understood
from weft.runs.suited import suited
from weft.sites.asked import Asked
from weft.sites.own_rows import OwnData, print_of
from weft.sites.reasons import SHOWN, Disagreed, Reason, refusal
from weft.sites.terms import RUN, Terms, differences
from weft.storage import files

HELLO, ADMIT, ASK, AWAY, BYE = "hello", "admit", "ask", "away", "bye"
AGREED, ADMITTED = "agreed.json", "admitted.json"
STAGES = ("setup", "rounds")


@dataclass(frozen=True)
class Own:
    """What a site settles for itself.

    Attributes:
        name: of the site. data: its rows. model: where it has the backbone, "" = under the name that the coordinator says.
        facts: about it, for methods that ask (its domain, its capacity). device: that it computes on.
        expected: its own copy of the experiment, None = it takes the coordinator's. trust_remote_code: of a backbone.
        sum_key: file with the key of all sites, for encrypted sums.
    """

    name: str
    data: OwnData
    model: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    expected: Experiment | None = None
    trust_remote_code: bool = False
    sum_key: Path | None = None


@dataclass
class AgreedRun:
    """What a site has agreed to."""

    terms: Terms
    experiment: Experiment
    method: Method
    bench: Bench
    client: ClientState
    stage: SiteClient | None = None


class Resident:
    """Answers for a site.

    Args:
        folder: what it remembers; a folder per run. say: is told what happens, in sentences.
    """

    def __init__(self, own: Own, folder: Path, say: Callable[[str], None]):
        self.own, self.folder, self.say = own, folder, say
        self.asked = Asked(folder, own.expected)
        self.run: AgreedRun | None = None  # one at a time: a backbone fills the memory

    def answer(self, raw: bytes) -> bytes:
        """An answer to anything that arrives.

        A refusal says why by a sentence of :class:`weft.sites.reasons.Reason`; the sentences of errors are said here alone.
        """
        try:
            about, data = unwrap(raw)
            what = about.get("what")
            if what == HELLO:
                return self._hello(Terms.from_json(about))
            if what == BYE:
                self.say("the run is over; waiting for another.")
                return wrap({"bye": True})
            if what == AWAY:
                self.say(f"the coordinator does not let this site take part: {plain(about.get('why'), 600)}")
                return wrap({"away": True})
            run = self._run(about.get("run"))
            if what == ADMIT and run is not None:
                return self._admit(run, about, data)
            site = None if run is None or what != ASK else self._stage(run, about.get("stage"))
            if site is None:
                return wrap({"stranger": True})  # its folder is new since it was greeted
            return self._answered(site, data)
        except Refused as e:
            self.say(f"a message was refused: {e}")
            return refusal(Reason.MESSAGE)
        except UserError as e:
            self.say(f"no answer to a message: {e}")
        except OSError as e:
            self.say(f"no answer to a message: {e.strerror or e} ({e.filename or self.folder}); what was saved before is intact.")
        except Exception:  # a bug of ours or of a backbone: the site stays, and what it says of its own goes no further
            self.say(f"no answer to a message, which is a bug; please report it:\n{traceback.format_exc()}")
        return refusal(Reason.TROUBLE)

    def _answered(self, site: SiteClient, data: bytes) -> bytes:
        began, question = time.perf_counter(), Question.decode(data)
        said = answer(site, data)
        what = {TRAIN: "trained", TEST: "scored"}.get(question.what, f"a sum's {question.what}")
        seconds = time.perf_counter() - began
        self.say(f"round {question.round.index + 1}: {what} in {seconds:.1f} s, {format_bytes(len(said))} go out.")
        return wrap({"answer": True}, said)

    # agreement ------------------------------------------------------------------------------------------------------------

    def _hello(self, terms: Terms) -> bytes:
        run = self.run
        if run is None or run.terms != terms:
            try:
                if not self._agreed_before(terms):
                    self.asked.begin(terms)
                run = self._agreed(terms)
                self.asked.agreed(terms)
            except Disagreed as e:
                self.say(f"this site does not take part: {e}")
                return refusal(e.reason, e.names, settings.flatten(terms.common))
            except UserError as e:
                self.say(f"this site does not take part: {e}")
                return refusal(Reason.TROUBLE)
        client = run.client.info(run.method.info.asks)
        return wrap({"name": client.id, "n": client.n, "facts": client.facts, "model": client.model})

    def _run(self, name: object) -> AgreedRun | None:
        """A run that this site has agreed to, in this process or before it was started."""
        if self.run is not None and self.run.terms.run == name:
            return self.run
        if isinstance(name, str) and RUN.fullmatch(name) and (note := self.folder / name / AGREED).exists():
            return self._agreed(Terms.from_json(files.read_sealed(note)["terms"]))
        return None

    def _agreed_before(self, terms: Terms) -> bool:
        """These very terms, so that agreeing again tells nothing new."""
        note = self.folder / terms.run / AGREED
        return note.exists() and files.read_sealed(note)["terms"] == terms.as_json()

    def rehearse(self, terms: Terms) -> AgreedRun:
        """What :meth:`answer` would agree to, with nothing written and any weights of the backbone."""
        return self._agreed(terms, rehearsal=True)

    def _agreed(self, terms: Terms, rehearsal: bool = False) -> AgreedRun:
        own = self.own
        if own.expected is not None and (odd := differences(terms, own.expected)):
            words = "; ".join(list(odd.values())[:SHOWN])
            raise Disagreed(Reason.SETTINGS, f"{words}: use the same experiment file.", list(odd))
        resolved = terms.resolved({"device": own.device, "trust_remote_code": own.trust_remote_code})
        x, method = resolved.experiment, resolved.played
        if not x.classes:
            raise Disagreed(Reason.ORDER, Reason.ORDER.value)
        if x.class_counts and own.expected is None:
            raise Disagreed(
                Reason.COUNTS,
                "the coordinator asks for counts by class, which tell how many rows of each label there are: give weft join your "
                "own experiment file with class_counts = true if you agree.",
            )
        if x.insecure_noise and own.expected is None:
            raise Disagreed(
                Reason.NOISE,
                "the coordinator asks for noise that is made of the run's seed, which hides nothing from it: give weft join your "
                "own experiment file with insecure_noise = true if you agree.",
            )
        try:
            client = own.data.client(own.name, x, self.say)
        except UnknownLabel as e:
            raise Disagreed(Reason.LABEL, str(e)) from e
        note, rows = self.folder / terms.run / AGREED, print_of(client, x)
        if note.exists() and files.read_sealed(note)["rows"] != rows:
            raise UserError(f"the rows are not those that this run was begun with ({note}): put them back, or leave the run.")
        self.run = None
        name, bench = self._bench(terms, x, method, client, rehearsal)
        suited(method, bench)
        hidden.check_rows(bench.privacy, method, [len(client.train)])
        for words in understood(bench):
            self.say(words)
        if not rehearsal:
            files.make_folder(note.parent, private=True)
            files.write_sealed(note, {"terms": terms.as_json(), "rows": rows})
        if bench.privacy:
            budget = "" if x.epsilon is None else f", with a budget of epsilon {x.epsilon:g}"
            self.say(f"privacy of this run: {x.privacy}{budget}.")
        if terms.start:
            self.say(f"the run begins from an adapter of the coordinator's (sha256 {terms.start[:12]}… of its values).")
        self.say(f"agreed to {method.info.slug} on {bench.backbone.name}: {len(client.train)} rows to train on.")
        sizes = np.cumsum([len(client.train), len(client.val)])
        splits = Splits(*np.split(np.arange(len(bench.table)), sizes))
        facts = dict(client.facts) | dict(own.facts)
        if client.train.tasks is not None and "tasks" in method.info.asks:
            facts["tasks"] = several.of_client(client)
        run = AgreedRun(terms, x, method, bench, ClientState(own.name, len(client.train), facts, name, data=splits))
        self.run = run
        return run

    def _bench(self, terms: Terms, x: Experiment, method: Method, client: ClientData, any_weights: bool) -> tuple[str, Bench]:
        """The backbone and the rows; and which of the federation's backbones it is, "" = the first."""
        names = x.models
        wanted = self.own.model or names[0]
        self.say(f"loading {wanted} …")
        backbone = backbone_of(x, wanted, x.classes, method.info.needs)
        have = [n for n in names if any_weights or terms.weights.get(n) == backbone.weight_hash]
        if not have:
            shown = ", ".join(f"{n} ({terms.weights.get(n, '?')[:12]})" for n in names)
            raise Disagreed(
                Reason.WEIGHTS,
                f"the coordinator's backbone is {shown} by the hash of its weights, and the site's, {wanted}, is "
                f"{backbone.weight_hash[:12]}: get the same weights.",
            )
        rows = Rows.concatenate([client.train, client.val, client.test])
        cuts = np.cumsum([len(client.train), len(client.val)])
        own = held([self.own.name], np.split(np.arange(len(rows)), cuts))
        rows, arrivals = arriving(x, rows, own, x.classes)
        privacy = hidden.of_site(x, self.own.sum_key)
        bench = replace(bench_of(x, backbone, x.classes, rows), arrivals=arrivals, privacy=privacy)
        return ("" if have[0] == names[0] else have[0]), bench

    # a stage ----------------------------------------------------------------------------------------------------------------

    def _admit(self, run: AgreedRun, about: Mapping[str, Any], start: bytes) -> bytes:
        """Begin or continue a stage."""
        stage, facts = about.get("stage"), about.get("facts")
        if stage not in STAGES or not isinstance(facts, dict):
            raise Refused("The coordinator admits this site to no stage that there is.")
        site = self._site(run, stage, facts, start)
        files.write(site.folder / START, start)
        files.write_sealed(site.folder / ADMITTED, {"facts": facts, START: files.sha256(start)})
        run.stage = site
        return wrap({"admitted": True})

    def _stage(self, run: AgreedRun, name: object) -> SiteClient | None:
        """A stage that this site was admitted to, in this process or before it was started."""
        if name not in STAGES:
            return None
        folder = self.folder / run.terms.run / str(name)
        if run.stage is not None and run.stage.folder == folder:
            return run.stage
        if not (folder / ADMITTED).exists():
            return None
        admitted = files.read_sealed(folder / ADMITTED)
        start = files.read_whole(folder / START, admitted[START])
        run.stage = self._site(run, str(name), admitted["facts"], start)
        return run.stage

    def _site(self, run: AgreedRun, stage: str, facts: Mapping[str, Any], start: bytes) -> SiteClient:
        """
        Raises:
            Refused: the start values are not those of this method.
        """
        x, one, bench = run.experiment, run.client, run.bench
        method = baselines.probe(x) if stage == "setup" else run.method
        client = ClientState(one.id, one.n, dict(one.facts) | dict(facts), one.model, data=one.data)
        limits = Limits(x.max_bytes, x.max_weight)
        tensors: dict[str, Any] = {}
        if start:
            adaptation = adapted(method, bench, nobody([client]))  # a smaller client takes the leading slices of what all get
            expected = Expected(
                method=method.info.slug,
                round=0,
                kind=START,
                direction="down",
                tensors={n: i.shape for n, i, _ in named(adaptation, bench.backbone)},
                max_bytes=limits.max_bytes,
                max_weight=limits.max_weight,
                client="*",
            )
            tensors = dict(decode(start, expected).tensors)
        if stage == "rounds" and run.terms.start:
            _check_start(tensors, run)
        label = f"{run.terms.run}/{stage}"
        return SiteClient(
            method, bench, client, self.folder / run.terms.run / stage, codec(x.codec), tensors, limits, x.class_counts, label
        )


def _check_start(tensors: Mapping[str, Any], run: AgreedRun) -> None:
    """What the site is handed is what it agreed to begin from; a head that a probe has trained since comes beside it.

    Raises:
        Refused: it is something else.
    """
    x, probed = run.experiment, set()
    if baselines.probing(x):
        mine = adapted(baselines.probe(x), run.bench, run.client)
        probed = {n for n, _, _ in named(mine, run.bench.backbone)}
    if digest({n: t for n, t in tensors.items() if n not in probed}) != run.terms.start:
        raise Refused("The start values are not those that were agreed on.")
