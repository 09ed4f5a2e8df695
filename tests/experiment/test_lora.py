"""Options of LoRA as settings of an experiment: names, sentences, files, and what is played."""

from __future__ import annotations

from typing import Any

import pytest

from weft.adaptation.lora_options import LoRAOptions
from weft.errors import UserError
from weft.experiment import assignments, resolve, to_toml
from weft.experiment.names import ungrouped
from weft.experiment.toml_file import read
from weft.sites.terms import COMMON, Terms, differences


def test_a_setting_that_is_called_after_its_group_is_short_in_its_table() -> None:
    assert ungrouped("lora.scaling") == "lora_scaling"
    assert ungrouped("lora.lora_scaling") == "lora_scaling"
    assert ungrouped("federation.rounds") == "rounds"
    assert ungrouped("federation.scaling") == "federation.scaling"
    assert ungrouped("lora.rounds") == "lora.rounds"
    assert assignments(["lora.scaling=rslora"]) == {"lora_scaling": "rslora"}
    with pytest.raises(UserError, match="lora_scaling is given twice"):
        assignments(["lora.scaling=rslora", "lora_scaling=usual"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"lora": {"scaling": "rslore"}},
            r'lora_scaling is "rslore", but must be "usual" or "rslora" \(did you mean "rslora"\?\)',
        ),
        ({"lora": {"ratio": 0.0}}, "lora_ratio is 0.0, but must be more than 0"),
        ({"lora": {"dropout": 1.0}}, "lora_dropout is 1.0, but must be less than 1"),
        (
            {"lora": {"variant": "dora"}, "method": "flora"},
            r'^flora has a rule of its own for the two factors of LoRA, so that lora\.variant = "dora" would not be what it says',
        ),
        (
            {"lora": {"start": "pissa"}, "method": "flexlora"},
            r'^flexlora has a rule of its own for the two factors of LoRA, so that lora\.start = "pissa" would not be',
        ),
        ({"lora": {"start": "pissa", "variant": "dora"}}, r'^lora\.variant = "dora" has a start of its own'),
        ({"lora": {"ratio": 4.0}, "method": "pf2lora"}, r"^pf2lora moves LoRA by steps of its own too, .* lora\.ratio = 4 would"),
        ({"lora": {"dropout": 0.1}, "method": "fedkseed"}, r"^fedkseed takes no gradient .* lora\.dropout = 0\.1 would"),
        ({"lora": {"scalling": "rslora"}}, r'there is no setting "lora.scalling" \(did you mean "lora_scaling"\?\)'),
    ],
)
def test_settings_that_cannot_work_are_one_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        resolve(settings)
    assert "\n" not in str(refusal.value)


def test_what_is_played_has_them_and_the_rule_comes_over_it(tmp_path: Any) -> None:
    found = resolve({"lora": {"scaling": "rslora"}, "rule": "scaffold", "method.rank": 3})
    assert found.method.info.slug == "fedit"
    assert found.played.info.slug == "fedit+rslora+scaffold"
    assert found.played.lora_options == LoRAOptions("rslora")  # type: ignore[attr-defined]
    assert found.played.rank == 3  # type: ignore[attr-defined]
    file = tmp_path / "experiment.toml"
    file.write_text(to_toml(found.experiment, {}))
    assert resolve({}, read(file)).played == found.played
    assert resolve({}).played == resolve({}).method


def test_a_start_is_a_word_of_the_name() -> None:
    found = resolve({"lora": {"start": "pissa"}})
    assert found.played.info.slug == "fedit+pissa"
    assert found.played.lora_options == LoRAOptions(start="pissa")  # type: ignore[attr-defined]


def test_local_training_has_them_and_no_rule() -> None:
    found = resolve({"lora": {"scaling": "rslora"}, "rule": "scaffold", "baseline": "local"})
    assert found.played.info.slug == "fedit+rslora"


def test_a_coordinator_and_its_sites_agree_on_them() -> None:
    assert {n for n in COMMON if n.startswith("lora_")} == {n for n in resolve({}).experiment.flat() if n.startswith("lora_")}
    terms = Terms.of("0" * 32, resolve({"lora": {"scaling": "rslora"}}).experiment)
    assert terms.resolved({}).played.info.slug == "fedit+rslora"
    assert set(differences(terms, resolve({}).experiment)) == {"lora_scaling"}
