"""Dealing: every row to one client or its loss said, keys whole, seeds reproducible, new clients apart."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.data import ClientData, FederatedData, Rows, Source, partition
from weft.errors import UserError


def make_source(labels: list[int], keys: list[str] | None = None, test: Rows | None = None, classes: int | None = None) -> Source:
    n = len(labels)
    rows = Rows([f"text {i}" for i in range(n)], None, np.array(labels), np.arange(n), keys)
    names = tuple(f"class {i}" for i in range(classes or max(labels) + 1))
    return Source("toy", names, rows, test=test, key_name="site" if keys else None, fingerprint="f")


def own_ids(client: ClientData) -> list[int]:
    return [int(i) for rows in (client.train, client.val, client.test) for i in rows.ids]


def dealt_ids(fed: FederatedData) -> list[int]:
    return [i for client in (*fed.clients, *fed.unseen) for i in own_ids(client)]


def random_source(seed: int, n: int, classes: int, keys: int) -> Source:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    labels[:classes] = np.arange(classes)
    owners = rng.integers(keys, size=n)
    owners[:keys] = np.arange(keys)
    return make_source(labels.tolist(), [f"site {k:02d}" for k in owners], classes=classes)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1000),
    n=st.integers(60, 200),
    classes=st.integers(2, 6),
    clients=st.integers(1, 9),
    scheme=st.sampled_from(["iid", "dirichlet", "pathological", "natural"]),
    new_clients=st.integers(0, 2),
)
def test_no_row_is_in_two_clients_and_none_is_lost_without_a_note(
    seed: int, n: int, classes: int, clients: int, scheme: str, new_clients: int
) -> None:
    source = random_source(seed, n, classes, keys=12)
    try:
        fed = partition(source, clients=clients, scheme=scheme, alpha=0.5, seed=seed, min_rows=0, new_clients=new_clients)
    except UserError as error:  # a class may have fewer rows than clients that should share it
        if scheme == "pathological" and "too few rows of some class" in str(error):
            return
        raise
    ids = dealt_ids(fed)
    assert len(ids) == len(set(ids))
    assert set(ids) <= set(range(n))
    lost = n - len(ids)
    sentence = [note for note in fed.notes if f"leaves out {lost} of {n} rows" in note]
    assert len(sentence) == (1 if lost else 0)
    assert len(fed.clients) == clients
    assert len(fed.unseen) == new_clients
    for client in fed.clients:
        for rows in (client.train, client.val, client.test):
            for i, text, label in zip(rows.ids.tolist(), rows.texts, rows.labels.tolist(), strict=True):
                assert text == f"text {i}"
                assert label == source.train.labels[i]


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1000), keys=st.integers(2, 30), data=st.data())
def test_a_natural_key_is_never_split_over_two_clients(seed: int, keys: int, data: st.DataObject) -> None:
    clients = data.draw(st.integers(1, keys))
    source = random_source(seed, 150, 3, keys)
    fed = partition(source, clients=clients, scheme="natural", seed=seed)
    owner: dict[str, str] = {}
    for client in fed.clients:
        for i in own_ids(client):
            assert source.train.keys is not None
            assert owner.setdefault(source.train.keys[i], client.id) == client.id
    assert len(owner) == keys
    assert len(set(owner.values())) == clients
    for client in fed.clients:
        held = sorted(key for key, by in owner.items() if by == client.id)
        assert client.facts == ({"domain": held[0]} if len(held) == 1 else {"domains": held})


def test_whole_keys_are_dealt_to_clients_of_comparable_size() -> None:
    sizes = [2**k for k in range(9)] + [40] * 20
    keys = [f"k{i:02d}" for i, size in enumerate(sizes) for _ in range(size)]
    fed = partition(make_source([i % 3 for i in range(len(keys))], keys), clients=4, scheme="natural")
    rows = sorted(len(own_ids(client)) for client in fed.clients)
    assert rows[-1] - rows[0] <= 64  # the filler keys have at most 64 rows, the next larger ones open a client each
    assert sum(rows) == len(keys)


def test_auto_is_natural_with_keys_and_dirichlet_without() -> None:
    labels = [i % 3 for i in range(90)]
    keys = [f"k{i % 5}" for i in range(90)]
    with_keys = make_source(labels, keys)
    assert [own_ids(c) for c in partition(with_keys, clients=3).clients] == [
        own_ids(c) for c in partition(with_keys, clients=3, scheme="natural").clients
    ]
    crowded = partition(with_keys, clients=8)  # too few keys for that: dealt anyway, with a word about it
    assert [own_ids(c) for c in crowded.clients] == [
        own_ids(c) for c in partition(with_keys, clients=8, scheme="dirichlet").clients
    ]
    assert any("--clients 5" in note for note in crowded.notes)
    without = make_source(labels)
    assert [own_ids(c) for c in partition(without, clients=3).clients] == [
        own_ids(c) for c in partition(without, clients=3, scheme="dirichlet").clients
    ]


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological", "natural"])
def test_the_same_seed_gives_the_same_deal_and_another_seed_another(scheme: str) -> None:
    source = random_source(3, 300, 5, 20)

    def deal(seed: int) -> list[list[int]]:
        fed = partition(source, clients=4, scheme=scheme, seed=seed)
        return [sorted(own_ids(client)) for client in fed.clients]  # sorted: whatever the split of its rows

    assert deal(7) == deal(7)
    assert deal(7) != deal(8)


def test_the_global_test_set_depends_on_the_seed_and_not_on_the_deal() -> None:
    source = random_source(5, 400, 4, 20)
    one, same, other = (sorted(partition(source, seed=seed).test.ids.tolist()) for seed in (2, 2, 3))
    assert one == same != other
    tests = {
        tuple(sorted(partition(source, clients=k, scheme=scheme, seed=2).test.ids.tolist()))
        for k, scheme in ((2, "iid"), (9, "iid"), (5, "natural"), (4, "dirichlet"))
    }
    assert tests == {tuple(one)}


def test_splits_have_the_fractions_asked_for_within_each_class() -> None:
    labels = [0] * 400 + [1] * 100
    fed = partition(make_source(labels), clients=1, scheme="iid", val_fraction=0.15, test_fraction=0.25)
    (client,) = fed.clients
    counts = {name: Counter(getattr(client, name).labels.tolist()) for name in ("train", "val", "test")}
    assert counts["test"] == {0: 100, 1: 25}
    assert counts["val"] == {0: 60, 1: 15}
    assert counts["train"] == {0: 240, 1: 60}


def test_many_small_keys_keep_the_test_fraction_on_average() -> None:
    keys = [f"k{i // 3:04d}" for i in range(3000)]  # three rows a key: rounding each the same way gives 0 or 1/3
    fed = partition(make_source([0, 1, 0] * 1000, keys), clients=10, scheme="natural", test_fraction=0.2)
    assert abs(len(fed.test) - 600) < 5 * np.sqrt(0.4 * 0.6 * 1000)  # strata of one row are pooled by their label
    assert all(len(client.train) for client in fed.clients)


def test_a_set_without_own_test_split_is_tested_on_the_union_of_its_clients_test_rows() -> None:
    fed = partition(random_source(1, 200, 3, 12), clients=4)
    assert sorted(fed.test.ids.tolist()) == sorted(i for c in fed.clients for i in c.test.ids.tolist())
    assert sorted(fed.val.ids.tolist()) == sorted(i for c in fed.clients for i in c.val.ids.tolist())


def test_a_sets_own_test_split_is_the_global_test_set_and_clients_carve_theirs_from_their_rows() -> None:
    own = Rows(["a", "b"], None, np.array([0, 1]), np.array([1000, 1001]))
    fed = partition(make_source([i % 2 for i in range(100)], test=own), clients=2, scheme="iid")
    assert fed.test is own
    assert all(len(client.test) and client.test.ids.max() < 100 for client in fed.clients)


def test_with_natural_keys_in_the_own_test_split_each_client_is_tested_on_its_keys() -> None:
    keys = [f"k{i % 4}" for i in range(100)]
    own = Rows(list("abcdefgh"), None, np.arange(8) % 2, np.arange(1000, 1008), [f"k{i % 4}" for i in range(8)])
    fed = partition(make_source([i % 2 for i in range(100)], keys, test=own), clients=4)
    for client in fed.clients:
        assert client.test.keys is not None
        assert set(client.test.keys) == {client.facts["domain"]}
        assert len(client.test) == 2
        assert len(client.train) + len(client.val) == 25  # no training row is given up for testing


def test_new_clients_are_tested_on_and_never_trained_on() -> None:
    source = random_source(2, 300, 3, 20)
    fed = partition(source, clients=4, new_clients=3, seed=1)
    assert [len(client.train) + len(client.val) for client in fed.unseen] == [0, 0, 0]
    assert all(len(client.test) for client in fed.unseen)
    new = {i for client in fed.unseen for i in client.test.ids.tolist()}
    known = {i for client in fed.clients for i in own_ids(client)}
    assert not new & (known | set(fed.test.ids.tolist()) | set(fed.val.ids.tolist()))
    assert len(new | known) == 300


def test_keys_that_the_source_holds_out_become_new_clients() -> None:
    base = random_source(2, 100, 3, 10)
    late = Rows(["x", "y"], None, np.array([0, 1]), np.array([500, 501]), ["late", "late"])
    source = Source("toy", base.classes, base.train, unseen={"late": late}, key_name="site")
    fed = partition(source, clients=3)
    assert [(client.facts["domain"], client.test.ids.tolist()) for client in fed.unseen] == [("late", [500, 501])]


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1000), scheme=st.sampled_from(["iid", "dirichlet", "pathological", "natural"]), data=st.data())
def test_a_key_that_is_left_out_is_tested_on_whole_and_never_trained_on(seed: int, scheme: str, data: st.DataObject) -> None:
    source = random_source(seed, 160, 4, keys=8)
    names = sorted(set(source.train.keys or ()))
    left = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    fed = partition(source, clients=3, scheme=scheme, seed=seed, min_rows=0, new_clients=1, leave_out=left)
    keys = source.train.keys or ()
    wanted = {key: {i for i in range(160) if keys[i] == key} for key in left}
    new = {str(client.facts.get("domain")): client for client in fed.unseen if client.facts.get("domain") in left}
    assert {key: set(client.test.ids.tolist()) for key, client in new.items()} == wanted
    assert len(fed.unseen) == len(left) + 1
    rest = [i for client in fed.clients for i in own_ids(client)]
    rest += [i for rows in (fed.test, fed.val) for i in rows.ids.tolist()]
    assert not {keys[i] for i in rest} & set(left)
    assert all(any(f"{key} is never trained on" in note for note in fed.notes) for key in left)
    ids = dealt_ids(fed)
    lost = [note for note in fed.notes if "leaves out" in note]
    assert len(ids) == len(set(ids))
    assert (len(ids) == 160) == (not lost)


def test_a_key_that_is_left_out_leaves_the_sets_own_test_split_too() -> None:
    keys = [f"k{i % 4}" for i in range(100)]
    own = Rows(list("abcdefgh"), None, np.arange(8) % 2, np.arange(1000, 1008), [f"k{i % 4}" for i in range(8)])
    source = make_source([i // 4 % 2 for i in range(100)], keys, test=own)
    fed = partition(source, clients=3, leave_out="k1")
    assert sorted(fed.test.ids.tolist()) == [1000, 1002, 1003, 1004, 1006, 1007]
    (new,) = fed.unseen
    assert sorted(new.test.ids.tolist()) == [*range(1, 100, 4), 1001, 1005]
    only = own.take(np.array([1, 5]))  # nothing is left of this test split, so that the clients' test rows take its place
    fed = partition(make_source([i // 4 % 2 for i in range(100)], keys, test=only), clients=3, leave_out="k1")
    assert sorted(fed.test.ids.tolist()) == sorted(i for client in fed.clients for i in client.test.ids.tolist()) != []
    unkeyed = Rows(["a", "b"], None, np.array([0, 1]), np.array([1000, 1001]))
    fed = partition(make_source([i // 4 % 2 for i in range(100)], keys, test=unkeyed), clients=3, leave_out="k1")
    assert any("its test split does not tell the site of a row" in note for note in fed.notes)


def test_leaving_one_key_out_is_the_same_as_a_list_of_it_and_changes_nothing_if_it_is_left_out_already() -> None:
    base = random_source(2, 100, 3, 10)
    one, same = (partition(base, clients=3, leave_out=given) for given in ("site 04", ["site 04"]))
    assert [own_ids(client) for client in one.clients] == [own_ids(client) for client in same.clients]
    late = Rows(["x", "y"], None, np.array([0, 1]), np.array([500, 501]), ["late", "late"])
    source = Source("toy", base.classes, base.train, unseen={"late": late}, key_name="site")
    without, asked = (partition(source, clients=3, leave_out=keys) for keys in ([], ["late"]))
    assert [client.test.ids.tolist() for client in asked.unseen] == [client.test.ids.tolist() for client in without.unseen]
    assert asked.notes == without.notes


@pytest.mark.parametrize(
    ("keys", "left", "sentence"),
    [
        (["north", "south"] * 20, "nrth", 'no row of toy has the site "nrth": there are north, south. Did you mean "north"?'),
        (["north", "south"] * 20, "north,south", "Repeat --leave-out for each: --leave-out north --leave-out south."),
        (["north", "south"] * 20, ["north", "south"], "toy has nothing to train on"),
        (["a", "b", "a", "a"] * 10, "b", "toy has one class only to train on"),
        (None, "north", "toy has no natural key to leave north out by: name its column with --key"),
    ],
)
def test_what_cannot_be_left_out_is_one_sentence(keys: list[str] | None, left: str | list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        partition(make_source([0, 1, 0, 0] * 10, keys), clients=1, leave_out=left)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pathological_clients_hold_exactly_k_classes_and_lose_none_when_the_clients_can_hold_all() -> None:
    labels = [i % 9 for i in range(900)]
    for seed in range(5):
        fed = partition(make_source(labels), clients=8, scheme="pathological", classes_per_client=2, seed=seed)
        held = [len({labels[i] for i in own_ids(client)}) for client in fed.clients]
        assert held == [2] * 8
        assert len(dealt_ids(fed)) == 900
        assert not fed.notes


def test_a_pathological_deal_that_must_lose_classes_says_how_many_rows_and_which() -> None:
    labels = [i % 5 for i in range(100)]
    fed = partition(make_source(labels), clients=2, scheme="pathological", classes_per_client=2)
    left = set(range(5)) - {labels[i] for i in dealt_ids(fed)}
    assert len(left) == 1
    assert f"leaves out 20 of 100 rows: no client was given their classes (class {left.pop()})" in fed.notes[0]


def test_a_smaller_alpha_makes_clients_more_skewed() -> None:
    source = make_source([i % 5 for i in range(2000)])

    def skew(alpha: float) -> float:
        fed = partition(source, clients=10, scheme="dirichlet", alpha=alpha, min_rows=0)
        shares = []
        for client in fed.clients:
            held = np.bincount([source.train.labels[i] for i in own_ids(client)], minlength=5)
            shares.append(held.max() / max(held.sum(), 1))
        return float(np.mean(shares))

    assert skew(0.1) > skew(1.0) > skew(100.0)


def test_clients_without_rows_or_with_one_class_survive() -> None:
    fed = partition(make_source([0, 1] * 20), clients=30, scheme="dirichlet", alpha=0.05, min_rows=0)
    sizes = [len(own_ids(client)) for client in fed.clients]
    assert 0 in sizes
    assert sum(sizes) == 40
    assert any(len(set(client.train.labels.tolist())) == 1 for client in fed.clients)


def test_ids_of_clients_sort_in_the_order_of_dealing() -> None:
    fed = partition(make_source([0, 1] * 60), clients=12, scheme="iid")
    ids = [client.id for client in fed.clients]
    assert ids == sorted(ids)
    assert len(set(ids)) == 12


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"clients": 1000, "scheme": "dirichlet", "alpha": 0.1}, "raise --alpha, ask for fewer --clients"),
        ({"clients": 31, "scheme": "natural"}, "has 30 different values of site"),
        ({"clients": 2001, "scheme": "iid"}, "has 2,000 rows to deal, too few for 2001 clients"),
        ({"clients": 300, "scheme": "iid", "min_rows": 7}, "at least 7 each"),
        ({"clients": 0}, "give at least one client"),
        ({"new_clients": -1}, "no negative numbers"),
        ({"scheme": "pathological", "classes_per_client": 6}, "has 5 classes"),
        (
            {"scheme": "pathological", "clients": 401, "classes_per_client": 5},
            "ask for fewer clients or classes",
        ),
        ({"scheme": "dirichlet", "alpha": 0.0}, "needs a number above 0"),
        ({"scheme": "dirichlet", "alpha": float("nan")}, "needs a number above 0"),
        ({"scheme": "dirichlett"}, 'Did you mean "dirichlet"?'),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "sum to less than 1"),
    ],
)
def test_an_impossible_deal_is_one_sentence_that_says_what_to_change(arguments: dict[str, float | str], sentence: str) -> None:
    keys = [f"k{i % 30:02d}" for i in range(2000)]
    with pytest.raises(UserError) as caught:
        partition(make_source([i % 5 for i in range(2000)], keys), **arguments)  # type: ignore[arg-type]
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_deal_that_leaves_some_client_too_few_rows_is_refused() -> None:
    source = make_source([0, 1] * 20, ["large"] * 35 + ["small"] * 5)
    with pytest.raises(UserError, match="gives some client 5 rows, fewer than the 6 asked for"):
        partition(source, clients=2, min_rows=6)
    assert min(len(own_ids(client)) for client in partition(source, clients=2, min_rows=5).clients) == 5


def test_a_natural_deal_without_keys_names_the_way_out() -> None:
    with pytest.raises(UserError, match="--key"):
        partition(make_source([0, 1] * 10), clients=2, scheme="natural")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 0, 1, 0, 0], ["all rows of the key c (of x) are of one class"]),
        ([0, 1, 1, 1, 0, 0], ["all rows of the key b (of y), c (of x) are of one class"]),
        ([0, 0, 1, 1, 0, 0], []),  # each of one: it is how the keys were made
        ([0, 1, 0, 1, 0, 1], []),
    ],
)
def test_a_domain_of_one_class_among_others_of_several_is_said(labels: list[int], said: list[str]) -> None:
    rows = Rows(texts=[f"t{i}" for i in range(6)], labels=np.array(labels), keys=list("aabbcc"))
    dealt = partition(Source("some", ("x", "y"), rows), clients=3, scheme="natural", val_fraction=0, test_fraction=0)
    found = [note for note in dealt.notes if "of one class" in note]
    assert len(found) == len(said)
    assert all(words in note for words, note in zip(said, found, strict=True))
