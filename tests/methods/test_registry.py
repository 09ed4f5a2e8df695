"""The registry: what is found without importing it, what is refused and how, and settings from names and values."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from weft import typed
from weft.adaptation.optim import Optim
from weft.errors import UserError
from weft.federation.info import FAMILIES, MethodInfo
from weft.federation.method import Method
from weft.methods import discovery, registry, settings

SOURCE = '''
from __future__ import annotations
from typing import ClassVar
from weft.federation.info import MethodInfo
from weft.methods.reparameterized.fedit import FedIT

print("imported")

class Mine(FedIT):
    """One more setting.

    Attributes:
        depth: how deep.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        slug="mine", title="A method " "of mine", paper="Me, 2030", family="prompts", sends="nothing", views=("a", "b")
    )
    depth: int = 3
'''
POINT = "mine = {package}.inner.methods:Mine"


def card(entry: str) -> str:
    """The source with one more entry in its identity card."""
    return SOURCE.replace('sends="nothing"', f'sends="nothing", {entry}')


class Install:
    """Puts throwaway packages on ``sys.path``, entry points and all, without pip."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.monkeypatch = folder, monkeypatch

    def __call__(self, source: str, point: str = "mine = {package}.inner.methods:Mine", package: str = "other") -> Path:
        root = self.folder / package
        (root / package / "inner").mkdir(parents=True)
        (root / package / "__init__.py").write_text("raise RuntimeError('the package was imported')\n")
        (root / package / "inner" / "__init__.py").write_text("")
        (root / package / "inner" / "methods.py").write_text(source, encoding="utf-8")
        info = root / f"{package}_dist-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}-dist\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[weft.methods]\n{point.format(package=package)}\n")
        self.monkeypatch.syspath_prepend(str(root))
        return root / package


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    before = set(sys.modules)
    yield Install(tmp_path, monkeypatch)
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("other", "another"):
            del sys.modules[name]


# listings -----------------------------------------------------------------------------------------------------------------


def test_cards_read_from_source_are_those_of_the_classes() -> None:
    infos = registry.infos()
    assert {"fedit", "feddat", "fedra", "flora", "fedbf", "ffa-lora", "rolora", "fedsa-lora", "flexlora"} <= set(infos)
    for slug, info in infos.items():
        assert registry.load(slug).info == info
        assert info.slug == slug


def test_listing_imports_neither_methods_nor_torch() -> None:
    script = (
        "import sys, json; from weft.methods import registry; import weft.methods as m; n = len(registry.infos()); d = dir(m);"
        "print(json.dumps([n, d, sorted(x for x in sys.modules if x.split('.')[0] in ('torch', 'numpy', 'transformers')"
        " or x.startswith('weft.methods.reparameterized'))]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, names, heavy = json.loads(done.stdout)
    assert heavy == []
    assert count == len(registry.infos())
    assert {"FedIT", "FLoRA", "registry"} <= set(names)


def test_methods_are_listed_by_family() -> None:
    order = [FAMILIES.index(i.family) for i in registry.infos().values()]
    assert order == sorted(order)


def test_classes_are_attributes_of_the_package() -> None:
    import weft.methods

    assert weft.methods.FedIT is registry.load("fedit")
    with pytest.raises(AttributeError, match="FedTI"):
        weft.methods.FedTI


def test_an_unknown_slug_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r'no method "fedeit".*Did you mean "fedit"\?'):
        registry.build("fedeit")


# other packages -----------------------------------------------------------------------------------------------------------


def test_a_method_of_another_package_is_listed_without_being_imported(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(SOURCE)
    info = registry.infos()["mine"]
    assert info == MethodInfo("mine", "A method of mine", "Me, 2030", "prompts", "nothing", views=("a", "b"))
    assert registry.broken() == []
    assert "other" not in sys.modules
    assert capsys.readouterr().out == ""


def test_a_method_of_another_package_is_built(install: Install) -> None:
    root = install(SOURCE)
    (root / "__init__.py").write_text("")
    method = registry.build("mine", {"depth": "7", "rank": 2})
    assert (type(method).__name__, method.depth, method.rank) == ("Mine", 7, 2)  # type: ignore[attr-defined]
    assert ("depth", "int", 3, "how deep.", ()) in registry.parameters(type(method))


def test_a_package_that_can_not_be_imported_is_a_sentence(install: Install) -> None:
    install(SOURCE)
    with pytest.raises(UserError, match=r"of other-dist can't be imported \(RuntimeError: the package was imported\)"):
        registry.load("mine")


@pytest.mark.parametrize(
    ("source", "point", "reason"),
    [
        (SOURCE, "mine = nowhere_at_all.methods:Mine", "not installed"),
        (SOURCE, "mine = {package}.inner.nothing:Mine", "not installed"),
        (SOURCE, "mine = {package}.inner.methods:Yours", "no class Yours"),
        (SOURCE, "mine = {package}.inner.methods", "package.module:Class"),
        (SOURCE, "mein = {package}.inner.methods:Mine", 'the slug of that class, "mine"'),
        (SOURCE + "\n(", "mine = {package}.inner.methods:Mine", "SyntaxError"),
        (SOURCE.replace('"Me, 2030"', "str(2030)"), "mine = {package}.inner.methods:Mine", "Mine.info.paper is no literal"),
        (SOURCE.replace("paper=", "papre="), "mine = {package}.inner.methods:Mine", "papre"),
        (SOURCE.replace('("a", "b")', '"a"'), "mine = {package}.inner.methods:Mine", "views must be tuple"),
        (SOURCE.replace('"prompts"', '"promts"'), "mine = {package}.inner.methods:Mine", 'unknown family "promts"'),
        (
            card('needs=("imges",)'),
            POINT,
            'unknown need "imges" in Mine.info (did you mean "images"?); it is one of images, texts,',
        ),
        (
            card('challenges=("data heterogenity",)'),
            POINT,
            'unknown challenge "data heterogenity" in Mine.info (did you mean "data',
        ),
        (card('needs=("images")'), POINT, 'Mine.info.needs must be tuple[str, ...]: write ("images",), a comma makes it one'),
        (card('asks=("rank")'), POINT, 'Mine.info.asks must be tuple[str, ...]: write ("rank",)'),
        (card("tells=(3,)"), POINT, "Mine.info.tells must be tuple[str, ...]"),
        (card("reveals=['a']"), POINT, "Mine.info.reveals must be tuple[str, ...]"),
        (SOURCE.replace('"mine"', '"My Method"'), "My-Method = {package}.inner.methods:Mine", "lower-case"),
    ],
)
def test_a_broken_entry_point_is_noted_and_the_rest_goes_on(install: Install, source: str, point: str, reason: str) -> None:
    install(source, point)
    assert "fedit" in registry.infos()
    (fault,) = registry.broken()
    assert fault.package == "other-dist"
    assert reason in fault.reason
    assert fault.reason.count("\n") == 0
    with pytest.raises(UserError, match="other-dist"):
        registry.load(fault.name)


def test_a_second_method_of_one_slug_is_an_error_that_names_both(install: Install) -> None:
    install(SOURCE.replace('"mine"', '"fedit"'), "fedit = {package}.inner.methods:Mine")
    with pytest.raises(UserError, match=r"fedit.*weft\.methods\.reparameterized\.fedit:FedIT.*other\.inner\.methods:Mine"):
        registry.infos()


def test_two_other_packages_with_one_slug_are_an_error(install: Install) -> None:
    install(SOURCE)
    install(SOURCE, package="another")
    with pytest.raises(UserError, match=r"another-dist.*other-dist"):
        registry.infos()


def test_two_of_our_own_files_with_one_slug_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(discovery, "__file__", str(tmp_path / "discovery.py"))
    discovery._ours.cache_clear()
    try:
        with pytest.raises(UserError, match=r'two methods are called "mine": weft\.methods\.a:Mine.*weft\.methods\.b:Mine'):
            registry.infos()
    finally:
        discovery._ours.cache_clear()


# settings -----------------------------------------------------------------------------------------------------------------


class Toy(Method):
    """A bit of everything.

    Attributes:
        count: a number of things. share, other: fractions; with a colon: here.
        mode: a word of two.
        old: not a field any more.
    """

    info: ClassVar[MethodInfo] = MethodInfo("toy", "Toy", "Nobody", "full", "nothing")
    count: int = 2
    share: float = 0.5
    other: float | None = None
    flag: bool = False
    mode: Literal["slow", "fast"] = "slow"
    name: str = "x"
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[int, ...] = ()
    either: int | str = 1
    optim: Optim = Optim("sgd", lr=0.1)
    second: Optim = Optim("adamw", lr=0.2)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("count", 5, 5),
        ("count", "5", 5),
        ("count", " 5 ", 5),
        ("share", 1, 1.0),
        ("share", "1e-3", 1e-3),
        ("other", "none", None),
        ("other", None, None),
        ("other", "0.25", 0.25),
        ("flag", "true", True),
        ("flag", "off", False),
        ("flag", True, True),
        ("mode", "fast", "fast"),
        ("name", "none", "none"),
        ("pair", "3,4", (3, 4.0)),
        ("pair", [3, 4], (3, 4.0)),
        ("pair", "(3, 4)", (3, 4.0)),
        ("many", "", ()),
        ("many", "4,8,16", (4, 8, 16)),
        ("either", "7", 7),
        ("either", "seven", "seven"),
    ],
)
def test_a_value_or_its_text_becomes_the_annotated_type(name: str, given: Any, value: Any) -> None:
    found = getattr(settings.configure(Toy, {name: given}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("count", 5.0, "a whole number, not 5.0"),
        ("count", "5.5", "a whole number, not '5.5'"),
        ("count", True, "a whole number, not True"),
        ("count", None, "a whole number, not None"),
        ("share", "nan", "a number, not 'nan'"),
        ("share", float("inf"), "a number, not inf"),
        ("share", [1], r"a number, not \[1\]"),
        ("other", "x", "a number or none, not 'x'"),
        ("flag", "maybe", "true or false, not 'maybe'"),
        ("flag", 1, "true or false, not 1"),
        ("name", 3, "a text, not 3"),
        ("pair", "1,2,3", r"\(a whole number, a number\), not '1,2,3'"),
        ("many", "1,x", "a list, of each a whole number, not '1,x'"),
        ("optim", 3, "a table, such as optim.kind = …, not 3"),
        ("optim.lr", "fast", "a number, not 'fast'"),
    ],
)
def test_another_type_is_refused_with_what_it_has_to_be(name: str, given: Any, words: str) -> None:
    with pytest.raises(UserError, match=f'method "toy": setting "{name}" must be {words}'):
        settings.configure(Toy, {name: given})


def test_nested_settings_go_by_full_name_by_table_and_short() -> None:
    wanted = Optim("sgd", lr=0.3, momentum=0.9)
    for given in (
        {"optim.lr": 0.3, "optim.momentum": "0.9"},
        {"optim": {"lr": 0.3, "momentum": 0.9}},
        {"lr": "0.3", "momentum": 0.9},
        {"lr": 0.3, "optim": {"momentum": 0.9}},
        {"optim": wanted},
    ):
        made = settings.configure(Toy, given)
        assert made.optim == wanted
        assert made.second == Toy().second
    assert settings.configure(Toy, {"second.lr": 0.7}).second == Optim("adamw", lr=0.7)


def test_canonical_names_let_one_layer_of_settings_lie_over_another() -> None:
    below, above = {"lr": 1.0, "count": 1}, {"optim": {"lr": 2.0}, "unknown": 3}
    merged = registry.canonical(Toy, below) | registry.canonical(Toy, above)
    assert merged == {"optim.lr": 2.0, "count": 1, "unknown": 3}


def test_a_setting_under_two_names_is_refused() -> None:
    with pytest.raises(UserError, match=r'optim\.lr is given twice, as "lr" and as "optim\.lr"'):
        settings.configure(Toy, {"lr": 1, "optim.lr": 2})


def test_all_problems_come_in_one_sentence() -> None:
    with pytest.raises(UserError) as caught:
        settings.configure(Toy, {"coutn": 1, "share": "x", "schedule": "cosin", "second.lr": -1})
    text = str(caught.value)
    for part in ('no setting "coutn" (did you mean "count"?)', '"share" must be', 'Did you mean "cosine"?', "lr ≥ 0"):
        assert part in text


def test_a_word_that_is_no_choice_is_refused_with_the_nearest_one() -> None:
    for make in (lambda: settings.configure(Toy, {"mode": "fats"}), lambda: Toy(mode="fats")):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r'unknown mode "fats": use slow, fast\. Did you mean "fast"\?$'):
            make()


def test_bounds_are_told_by_name_and_value() -> None:
    with pytest.raises(UserError, match=r'^method "toy": it needs batch ≥ 1, not 0; it needs 0 ≤ optim\.warmup ≤ 1, not 1\.5\.$'):
        settings.configure(Toy, {"batch": "0", "warmup": 1.5})
    with pytest.raises(UserError, match=r"^Toy: it needs epochs > 0, not -1\.0; it needs batch ≥ 1, not 0\.$"):
        Toy(epochs=-1.0, batch=0)


@pytest.mark.parametrize("slug", sorted(registry.infos()))
def test_defaults_of_every_method_fit_their_own_types(slug: str) -> None:
    cls = registry.load(slug)
    typed.check(cls())
    for name, hint in typed.hints(cls).items():
        default = getattr(cls, name)
        if not dataclasses.is_dataclass(default):
            assert typed.convert(default, hint) == default
    for parameter in registry.parameters(cls):
        assert "Annotated" not in parameter.type and "Literal" not in parameter.type  # noqa: PT018


def test_one_of_our_own_cards_with_an_unknown_word_is_an_error_that_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text(card('needs=("two tower",)'), encoding="utf-8")
    monkeypatch.setattr(discovery, "__file__", str(tmp_path / "discovery.py"))
    discovery._ours.cache_clear()
    try:
        with pytest.raises(UserError, match=r'weft\.methods\.a has an unknown need "two tower".*did you mean "two towers"'):
            registry.infos()
    finally:
        discovery._ours.cache_clear()


@pytest.mark.parametrize("given", [{"batch": 0}, {"epochs": 0}, {"epochs": -1.0}, {"steps": 0}, {"weighting": "exampels"}])
def test_a_value_out_of_range_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match='method "toy": '):
        settings.configure(Toy, given)


def test_values_make_the_same_method_again() -> None:
    made = settings.configure(Toy, {"count": 9, "second.lr": 0.5, "clip": 1.0, "many": (1, 2)})
    assert settings.configure(Toy, registry.values(made)) == made
    for slug in registry.infos():
        method = registry.build(slug)
        assert registry.build(slug, registry.values(method)) == method


def test_parameters_are_what_build_takes_with_their_text() -> None:
    found = {p.name: p for p in registry.parameters(Toy)}
    assert found.keys() == registry.values(Toy()).keys()
    assert {n: p.default for n, p in found.items()} == registry.values(Toy())
    assert list(found)[:2] == ["count", "share"]  # its own first
    assert found["count"].doc == "a number of things."
    assert found["share"].doc == found["other"].doc == "fractions; with a colon: here."
    assert found["mode"].doc == "a word of two."
    assert found["pair"].type == "tuple[int, float]"
    assert found["second.lr"].default == 0.2
    assert found["batch"].doc == "examples in a client's step."  # of the contract


@pytest.mark.parametrize("slug", sorted(registry.infos()))
def test_docstrings_describe_every_setting_of_a_method_and_no_other(slug: str) -> None:
    cls = registry.load(slug)
    for parameter in registry.parameters(cls):
        assert parameter.doc, f"{cls.__name__}.{parameter.name} has no text in an Attributes: section"
    assert [name for name in settings.docs_of(cls) if not hasattr(cls, name)] == []
