"""Settings: three layers with their origins, one sentence for what is wrong, and files that say everything."""

from __future__ import annotations

import pickle
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft import experiment, recipes
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.experiment import Experiment, resolve
from weft.methods import registry
from weft.methods.reparameterized.fedit import FedIT
from weft.methods.reparameterized.flora import FLoRA

ELSEWHERE = {"model": "owner/model", "data": "owner/data"}  # no recipe is for these


def refused(typed: dict[str, Any], file: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as refusal:
        resolve(typed, file)
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert sentence[-1] in ".?"
    return sentence


# layers -------------------------------------------------------------------------------------------------------------------


def test_without_a_recipe_the_papers_settings_stand() -> None:
    found = resolve(ELSEWHERE)
    assert found.method == FedIT()
    assert {o for n, o in found.origin.items() if n not in ELSEWHERE} == {"default"}
    assert {found.origin[n] for n in ELSEWHERE} == {"user"}


def test_a_recipe_lies_over_the_papers_settings_and_under_what_was_typed() -> None:
    recipe = recipes.find("fedit", "reparameterized", "minilm", "pydocs", set(registry.values(FedIT())))
    assert {"method.rank", "method.optim.lr", "rounds"} <= set(recipe)
    found = resolve({"method.rank": 3, "rounds": 2})
    assert found.experiment.rounds == 2
    assert found.method.rank == 3  # type: ignore[attr-defined]
    assert found.method.optim.lr == recipe["method.optim.lr"]
    assert found.origin["method.rank"] == found.origin["rounds"] == "user"
    assert found.origin["method.optim.lr"] == found.origin["max_length"] == "recipe"
    assert found.origin["method.alpha"] == found.origin["clients"] == "default"


def test_every_setting_of_experiment_and_method_has_an_origin() -> None:
    for slug in registry.infos():
        found = resolve({"method": slug})
        assert set(found.origin) == set(found.experiment.flat())
        assert set(found.origin) >= {f"method.{n}" for n in registry.values(found.method)}
        assert set(found.origin.values()) <= {"default", "recipe", "user"}


def test_recipes_can_be_left_out() -> None:
    assert resolve({"recipes": False}).method == FedIT()
    assert resolve({"recipes": False}).experiment == Experiment(
        recipes=False, parameters=registry.values(FedIT()), **{n: getattr(Experiment(), n) for n in ("model", "data")}
    )


def test_every_recipe_names_real_settings_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe in recipes._all():
        for slug in registry.infos():
            resolve({"method": slug, "model": recipe["model"], "data": recipe["data"]})
        sections = [*recipe.get("family", {}).values(), *recipe.get("method", {}).values(), recipe.get("any", {})]
        every = {p.name for slug in registry.infos() for p in registry.parameters(registry.load(slug))}
        for section in sections:
            assert set(recipes._flat(section)) <= every
        assert set(recipe.get("method", {})) <= set(registry.infos())
        assert set(recipe.get("family", {})) <= {i.family for i in registry.infos().values()}


def test_there_is_one_recipe_for_a_backbone_and_data_and_methods_lie_over_it() -> None:
    pairs = [(recipe["model"], recipe["data"]) for recipe in recipes._all()]
    assert len(pairs) == len(set(pairs)) == len(list(Path(recipes.__file__).parent.glob("*.toml")))
    (pydocs,) = (recipe for recipe in recipes._all() if (recipe["model"], recipe["data"]) == ("minilm", "pydocs"))
    assert pydocs["method"]["fedbf"] == {"optim": {"lr": 5e-3, "clip": "none"}}
    found = recipes.find("fedbf", "selective", "minilm", "pydocs", {"batch", "optim.lr", "optim.clip"})
    assert found == pydocs["settings"] | {"method.batch": 32, "method.optim.lr": 5e-3, "method.optim.clip": "none"}
    assert recipes.find("pfedpg", "prompts", "glyph-vit", "glyphs", {"server_optimizer"})["method.server_optimizer"] == "adam"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("mine.toml", 'model = "m"\ndata = "d"\n[familly.full]\nrank = 1', r"mine\.toml: unknown sections \['familly'\]"),
        ("other.toml", 'model = "m"\ndata = "e"', r"other\.toml: a second recipe for m and e, after first\.toml"),
        ("methods/fedbf.toml", "[m.d]\nrank = 1", r"methods/fedbf\.toml: there is no recipe for m and d"),
    ],
)
def test_a_recipe_that_would_never_apply_is_an_error(
    name: str, text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "first.toml").write_text('model = "m"\ndata = "e"\n[any]\nrank = 2')
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(recipes, "_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=words):
        recipes._all.__wrapped__()


def test_the_more_special_section_of_a_recipe_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "model": "m",
        "data": "d",
        "any": {"rank": 1, "alpha": 1.0, "batch": 1},
        "family": {"reparameterized": {"rank": 2, "alpha": 2.0}},
        "method": {"fedit": {"rank": 3, "absent": 1}},
    }
    monkeypatch.setattr(recipes, "_all", lambda: [made])
    found = recipes.find("fedit", "reparameterized", "m", "d", {"rank", "alpha", "batch"})
    assert found == {"method.rank": 3, "method.alpha": 2.0, "method.batch": 1}
    assert not recipes.find("fedit", "reparameterized", "m", "other", {"rank"})


@pytest.mark.parametrize("slug", sorted(registry.infos()))
def test_an_object_and_a_slug_are_one_experiment(slug: str) -> None:
    cls = registry.load(slug)
    assert resolve({}, method=cls()).experiment == resolve({"method": slug}).experiment
    name = "batch" if "batch" not in cls.unused else "server_batch"
    by_object, by_slug = resolve({}, method=cls(**{name: 7})), resolve({"method": slug, f"method.{name}": 7})
    assert (by_object.method, by_object.experiment) == (by_slug.method, by_slug.experiment)
    assert by_object.origin == by_slug.origin | {"method": "user"}


def test_what_was_written_where_an_object_was_made_is_left_alone_by_recipes() -> None:
    found = resolve({}, method=FedIT(sites="q"))
    assert found.method.sites == FedIT().sites == "q"  # type: ignore[attr-defined]
    assert found.origin["method.sites"] == "user"
    assert resolve({}, method=FedIT()).method.sites == "all"  # type: ignore[attr-defined]


def test_a_backbone_has_a_recipe_for_data_that_have_none() -> None:
    """The rates of papers are for models a hundred times as large, and teach this one nothing."""
    own = resolve({"data": "mine.csv"})
    assert own.method.optim.lr > 5 * FedIT().optim.lr
    assert own.origin["method.optim.lr"] == own.origin["start_head"] == "recipe"
    assert own.experiment.rounds == Experiment().rounds
    assert resolve({"data": "mine.csv", "recipes": False}).method == FedIT()
    assert resolve({"data": "mine.csv", "model": "owner/model"}).method == FedIT()


def test_a_recipe_for_the_data_goes_before_one_for_any_data_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    any_data = {"model": "m", "data": "*", "settings": {"rounds": 1, "clients": 2}, "any": {"rank": 1, "alpha": 1.0}}
    for_data = {"model": "m", "data": "d", "settings": {"rounds": 3}, "any": {"rank": 4}}
    monkeypatch.setattr(recipes, "_all", lambda: [for_data, any_data])
    assert recipes.find("fedit", "x", "m", "d", {"rank", "alpha"}) == {"rounds": 3, "method.rank": 4}
    assert recipes.find("fedit", "x", "m", "e", {"rank"}) == {"rounds": 1, "clients": 2, "method.rank": 1}
    assert not recipes.find("fedit", "x", "n", "d", {"rank"})


def test_a_nested_setting_and_a_copy_are_written_as_a_whole() -> None:
    found = resolve({}, method=FedIT(optim=Optim("sgd", lr=0.1)))
    assert found.method.optim == Optim("sgd", lr=0.1)
    assert found.method.epochs == 0.25
    assert found.origin["method.optim.schedule"] == "user"
    assert found.origin["method.epochs"] == "recipe"
    assert resolve({}, method=replace(FedIT(), rank=4)).method == FedIT(rank=4)


def test_what_an_object_leaves_open_comes_from_the_file() -> None:
    file = {"method": {"name": "fedit", "rank": 7, "steps": "none"}, "recipes": False}
    assert resolve({}, file, FedIT(batch=3)).method == FedIT(rank=7, batch=3)
    assert resolve({}, file, FedIT(rank=2)).method == FedIT(rank=2)


def test_an_object_survives_a_file() -> None:
    found = resolve({}, method=FedIT(rank=5, optim=Optim("sgd", lr=0.1)))
    assert not found.given
    assert resolve({}, tomllib.loads(experiment.to_toml(found.experiment, {}))).method == found.method


def test_an_object_and_its_settings_apart_are_refused_where_both_say_the_same() -> None:
    with pytest.raises(UserError, match=r"method\.rank: given by the method's object and besides"):
        resolve({"parameters": {"rank": 4}}, method=FedIT(rank=8))
    assert resolve({"parameters": {"rank": 4}}, method=FedIT(batch=8)).method.rank == 4  # type: ignore[attr-defined]


def test_what_was_written_is_no_part_of_a_methods_value() -> None:
    assert FedIT(rank=FedIT().rank) == FedIT()
    assert registry.written(pickle.loads(pickle.dumps(FedIT(rank=8)))) == {"rank"}
    assert registry.written(FedIT(optim=Optim())) == {n for n in registry.values(FedIT()) if n.startswith("optim.")}


def test_what_a_class_of_its_own_sets_is_left_alone_too() -> None:
    """Its constructor takes what it likes, and may say nothing to ours of what it was given."""

    class Sized(FedIT):
        """A constructor of its own."""

        def __init__(self, size: int) -> None:
            super().__init__(rank=size)

    class Silent(FedIT):
        """What makes it tells us nothing."""

        def __new__(cls, *_values: Any, **_named: Any) -> Silent:
            return super().__new__(cls)

    class Derived(FedIT):
        """A setting follows from another."""

        def __post_init__(self) -> None:
            super().__post_init__()
            object.__setattr__(self, "alpha", 2.0 * self.rank)

    for made in (Sized(4), Silent(rank=4)):
        found = resolve({}, method=made)
        assert type(found.method) is type(made)
        assert (found.method.rank, found.method.sites, found.origin["method.rank"]) == (4, "all", "user")  # type: ignore[attr-defined]
    assert resolve({}, {"method": {"name": "fedit", "rank": 3}}, Derived()).method.alpha == 6.0  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="batch ≥ 1"):
        resolve({"parameters": {"batch": 0}}, method=Sized(4))


def test_an_object_that_no_slug_stands_for_is_known_as_such() -> None:
    class Local(FedIT):
        """Not registered."""

    assert resolve({}, method=Local()).given


def test_short_and_full_names_of_a_setting_are_one() -> None:
    assert resolve({"method.lr": 0.5}).method.optim.lr == 0.5
    assert resolve({"parameters": {"optim": {"lr": 0.5}}}).method.optim.lr == 0.5
    assert resolve({"method.lr": 0.5}).origin["method.optim.lr"] == "user"


# files --------------------------------------------------------------------------------------------------------------------


def test_what_is_typed_lies_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text('rounds = 3\nclients = 5\n[method]\nname = "flora"\nrank = 7\noptim.lr = 0.25\n')
    found = resolve({"rounds": 4, "method.lr": 0.5}, experiment.read(path))
    assert isinstance(found.method, FLoRA)
    assert (found.experiment.rounds, found.experiment.clients) == (4, 5)
    assert (found.method.rank, found.method.optim.lr) == (7, 0.5)


def test_settings_of_another_method_in_a_file_are_left_out_and_said() -> None:
    file = {"method": {"name": "flora", "rank": 7}, "rounds": 3}
    found = resolve({"method": "fedbf"}, file)
    assert found.experiment.method == "fedbf"
    assert found.experiment.rounds == 3
    assert "method.rank" in found.notes[0]
    assert resolve({"method": "flora"}, file).method.rank == 7  # type: ignore[attr-defined]
    assert resolve({}, {"method": {"rank": 7}}).method.rank == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize("slug", sorted(registry.infos()))
def test_a_saved_file_is_complete_and_gives_the_same_experiment(slug: str) -> None:
    name = "steps" if "steps" not in registry.load(slug).unused else "server_epochs"
    first = resolve({"method": slug, "limit": 50, f"method.{name}": 3, "baselines": ["central"], "eval_clients": 4})
    saved = tomllib.loads(experiment.to_toml(first.experiment, {"pack": 3}))
    again = resolve({}, saved)
    assert again.method == first.method
    assert again.experiment.flat() | {"pack": "auto", "recipes": True} == first.experiment.flat()
    assert again.experiment.pack == 3
    assert {o for n, o in again.origin.items() if n not in ("name", "runs")} == {"user"}


@settings(max_examples=25)
@given(
    rounds=st.integers(1, 10**6),
    lr=st.floats(0, 1e3),
    steps=st.none() | st.integers(1, 50),
    participation=st.floats(1e-6, 1),
    name=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20).filter(lambda t: t != "none"),
)
def test_any_valid_values_survive_a_file(rounds: int, lr: float, steps: int | None, participation: float, name: str) -> None:
    first = resolve(
        ELSEWHERE
        | {"rounds": rounds, "method.lr": lr, "method.steps": steps, "participation": participation, "text": name, "key": None}
    )
    again = resolve({}, tomllib.loads(experiment.to_toml(first.experiment, {})))
    assert again.method == first.method
    assert again.experiment.flat() | {"recipes": True} == first.experiment.flat()


@pytest.mark.parametrize("given", ["photo", ["photo"], ["photo", "a, b"], []])
def test_what_is_left_out_is_a_name_or_a_list_of_names_and_survives_a_file(given: str | list[str]) -> None:
    first = resolve(ELSEWHERE | {"leave_out": given, "image": "img"})
    assert first.experiment.leave_out == ([given] if isinstance(given, str) else given)
    again = resolve({}, tomllib.loads(experiment.to_toml(first.experiment, {})))
    assert again.experiment.leave_out == first.experiment.leave_out
    assert again.experiment.image == "img"
    assert "leave_out" in refused({"leave_out": [3]})


def test_a_file_that_is_none_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("rounds = = 3")
    (tmp_path / "later.toml").write_text("format = 2")
    for name, word in (("absent", "can't read"), ("broken", "not valid TOML"), ("later", "format 2")):
        with pytest.raises(UserError, match=word):
            experiment.read(tmp_path / f"{name}.toml")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("method.rank=16", "method.rank", 16),
        ("method.lr = 2e-3", "method.lr", 0.002),
        ("model=minilm", "model", "minilm"),
        ("data=a=b.csv", "data", "a=b.csv"),
        ("by_length=false", "by_length", False),
        ('baselines=["local"]', "baselines", ["local"]),
        ("limit=none", "limit", "none"),
    ],
)
def test_an_assignment_is_a_name_and_a_typed_value(text: str, name: str, value: Any) -> None:
    assert experiment.assignment(text) == (name, value)


def test_an_assignment_without_a_sign_is_refused() -> None:
    with pytest.raises(UserError, match="write NAME=VALUE"):
        experiment.assignment("rank 16")


# sentences ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"rounds": 0}, ["rounds is 0", "at least 1"]),
        ({"rounds": "3"}, ['rounds is "3"', "a whole number"]),
        ({"rounds": True}, ["rounds is true", "a whole number"]),
        ({"participation": 1.5}, ["participation is 1.5", "at most 1"]),
        ({"participation": 0.0}, ["participation is 0.0", "more than 0"]),
        ({"dropout": 1.0}, ["dropout is 1.0", "less than 1"]),
        ({"dropout": -0.1}, ["dropout is -0.1", "at least 0"]),
        ({"pack": 0}, ["pack is 0", 'at least 1 or "auto"']),
        ({"seed": -1}, ["seed is -1", "at least 0"]),
        ({"partition": "dirichelt"}, ["partition is", '(did you mean "dirichlet"?)']),
        ({"baselines": ["locl"]}, ['is "locl"', '"local", "central", "probe" or "zero-shot"']),
        ({"precision": "fp8"}, ['precision is "fp8"', '"bfloat16"']),
        ({"rouns": 3}, ['no setting "rouns"', '(did you mean "rounds"?)']),
        ({"rank": 8}, ['no setting "rank"', "write method.rank"]),
        ({"lr": 1.0}, ['no setting "lr"', "write method.optim.lr"]),
        ({"method": "fedavg", "tune.kind": "lora"}, ['no setting "tune.kind"', "write method.tune.kind"]),
        ({"method": "fedit", "tune.kind": "lora"}, ['there is no setting "tune.kind".']),
        ({"method.rnk": 8}, ['no setting "rnk"', '(did you mean "rank"?)']),
        ({"method.rank": "x"}, ['setting "rank" must be a whole number']),
        ({"method": "fedtt"}, ['no method "fedtt"', 'Did you mean "fedit"?']),
        ({"rounds": 0, "clients": 0, "alpha": 0.0}, ["rounds is 0", "clients is 0", "alpha is 0.0"]),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_way_out(typed: dict[str, Any], words: list[str]) -> None:
    sentence = refused(typed)
    assert all(word in sentence for word in words), sentence
    assert refused({}, experiment_file(typed)) == sentence


def experiment_file(typed: dict[str, Any]) -> dict[str, Any]:
    """The same settings, nested as in a file."""
    table: dict[str, Any] = {"method": {}}
    for name, value in typed.items():
        if name == "method":
            table["method"]["name"] = value
        elif name.startswith("method."):
            table["method"][name.removeprefix("method.")] = value
        else:
            table[name] = value
    return table
