"""What a server can't see: masks look like chance, shares below the threshold say nothing, and a client tells one of two."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from scipy import stats

from secure_sums import begun, names
from weft.communication.strict import Refused
from weft.privacy.secagg.neighbourhood import Neighbourhood
from weft.privacy.secagg.pairwise import KEY, PUBLIC, SHARES, Attempt, public_key
from weft.privacy.secagg.secret_shares import SECRET, combine, split
from weft.privacy.sums.packets import Packet, unpacked

LONG = 20_000
CHANCE = 1e-7
"""Keys are drawn anew in each test: it fails by chance once in so many."""


def person(name: str, private: bytes) -> tuple[str, bytes]:
    return name, public_key(private) + public_key(private[::-1])


def looks_random(integers: np.ndarray) -> bool:
    """By the counts of bytes in each of the four places, and by those of neighbouring bits."""
    places = integers.astype("<u4").view(np.uint8).reshape(-1, 4)
    counts = [np.bincount(places[:, i], minlength=256) for i in range(4)]
    pairs = np.bincount(places[:-1, 0] // 16 * 16 + places[1:, 0] // 16, minlength=256)
    return all(stats.chisquare(c).pvalue > CHANCE for c in (*counts, pairs))


def test_masks_cancel_each_other_and_differ_for_256_pairs_of_keys() -> None:
    attempt = Attempt("a run", 3, "ab", tuple(names(24)))
    private = [os.urandom(KEY) for _ in range(24)]
    pairs = list(itertools.combinations(range(24), 2))[:256]
    assert len(pairs) == 256
    firsts = Counter()
    for i, j in pairs:
        one, other = person(f"site {i}", private[i]), person(f"site {j}", private[j])
        mask = attempt.mask(private[i], one, other, 64)
        assert not (mask + attempt.mask(private[j], other, one, 64)).any()
        firsts.update({mask[:2].tobytes(), (-mask)[:2].tobytes()})
    assert len(firsts) == 2 * 256


def test_a_mask_is_the_one_by_hand() -> None:
    """X25519, then HKDF-SHA256 with all that it is bound to, then AES-256 in counter mode."""
    mine, theirs = os.urandom(KEY), os.urandom(KEY)
    one, other = person("a", mine), person("b", theirs)
    shared = X25519PrivateKey.from_private_bytes(mine).exchange(X25519PublicKey.from_public_bytes(other[1][:KEY]))
    people = f'[["a","{one[1].hex()}"],["b","{other[1].hex()}"]]'
    among = hashlib.sha256(b'{"ids":["a","b","c"]}').hexdigest()
    info = f'{{"among":"{among}","nonce":"ab","people":{people},"round":3,"run":"a run","weft secagg":"mask"}}'
    key = HKDF(SHA256(), 32, None, info.encode()).derive(shared)
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(40))
    by_hand = [int.from_bytes(stream[i : i + 4], "little") for i in range(0, 40, 4)]
    assert Attempt("a run", 3, "ab", ("a", "b", "c")).mask(mine, one, other, 10).tolist() == by_hand
    assert Attempt("a run", 3, "ab", ("a", "b", "c")).mask(theirs, other, one, 10).tolist() == [-m % 2**32 for m in by_hand]


def test_a_mask_is_bound_to_run_round_attempt_and_both_clients() -> None:
    mine, theirs = os.urandom(KEY), os.urandom(KEY)
    one, other = person("a", mine), person("b", theirs)
    all_ = ("a", "b", "c")
    usual, fewer = Attempt("a run", 3, "ab", all_), Attempt("a run", 3, "ab", all_[:2])
    masks = {
        attempt.mask(mine, first, second, 4).tobytes()
        for attempt in (
            usual,
            Attempt("b run", 3, "ab", all_),
            Attempt("a run", 4, "ab", all_),
            Attempt("a run", 3, "ac", all_),
            fewer,
        )
        for first, second in ((one, other), (("c", one[1]), other), (one, ("c", other[1])))
    }
    assert len(masks) == 15
    seed = os.urandom(KEY)
    own = {Attempt("a run", 3, nonce, all_).own_mask(seed, client, 4).tobytes() for nonce in ("ab", "ac") for client in "ab"}
    assert len(own) == 4


def test_masked_vectors_look_like_chance_and_like_nothing_else() -> None:
    """All clients have the same vector of zeros, twice."""
    seen = []
    for _ in range(2):
        sum_ = begun(4, LONG)
        sum_.values = dict.fromkeys(names(4), np.zeros(LONG, np.uint32))
        sum_.played()
        assert not sum_.server.total().any()
        seen += [unpacked(Packet.read(sum_.answers["masked", c]).body, 4) for c in names(4)]
    assert all(looks_random(v) for v in seen)
    for one, other in itertools.combinations(seen, 2):
        assert looks_random(one - other)
        assert stats.pearsonr(one.astype(float), other.astype(float)).pvalue > CHANCE
    assert not looks_random(np.arange(LONG, dtype=np.uint32))


def test_a_vector_that_comes_too_late_stays_hidden_though_its_key_is_known() -> None:
    """That is what a client's own mask is for: the server has taken it for gone, and has put its key together."""
    sum_ = begun(5, LONG).until("masked")
    late = "site 2"
    client = sum_.clients[late]
    sum_.values[late] = np.zeros(LONG, np.uint32)
    keys = {v: client._public[v] for v in names(5)}
    mask_key, seed = client._private["mask"], client._private["seed"]
    masked = unpacked(Packet.read(client.answer(sum_.server.question(late), sum_.values[late])).body, 4)
    sum_.ask([late])
    sum_.server.close()
    sum_.ask()
    sum_.server.close()
    sum_.server.total()
    server = sum_.server
    attempt = Attempt("a run", 3, server.nonce, server.closed["keys"])
    assert server._secret(Neighbourhood(sum_.terms, server.closed["keys"]), late) == mask_key
    for v in set(names(5)) - {late}:
        masked = masked - attempt.mask(mask_key, (late, keys[late]), (v, keys[v]), LONG)
    assert looks_random(masked)
    assert not (masked - attempt.own_mask(seed, late, LONG)).any()  # which nobody has told


@pytest.mark.parametrize(("threshold", "holders"), [(2, 3), (3, 5), (12, 17)])
def test_shares_below_the_threshold_say_nothing(threshold: int, holders: int) -> None:
    secret = os.urandom(SECRET)
    shares = dict(enumerate(split(secret, threshold, holders)))
    for places in ([*range(threshold)], [*range(holders - threshold, holders)], [*range(holders)]):
        assert combine({i: shares[i] for i in places}, threshold) == secret
    few = {i: shares[i] for i in range(1, threshold)}
    with pytest.raises(ValueError, match=f"{threshold} shares give the secret, {threshold - 1} are there"):
        combine(few, threshold)
    assert combine(few, threshold - 1) != secret
    possible = {combine(few | {0: os.urandom(SECRET)}, threshold) for _ in range(50)}
    assert len(possible) == 50  # each other share goes with another secret
    assert secret not in possible


def test_halves_of_a_secret_are_shared_by_themselves() -> None:
    secret = bytes(16) + os.urandom(16)
    shares = split(secret, 2, 3)
    assert shares[0][:16] != bytes(16)
    assert shares[0][:16] != shares[0][16:]
    assert combine({0: shares[0], 2: shares[2]}, 2) == secret


def test_fewer_answers_than_the_threshold_unmask_nobody() -> None:
    """All that the server has got, and one answer too few: no secret of anybody comes out."""
    sum_ = begun(7).until("unmask")
    graph = Neighbourhood(sum_.terms, sum_.server.closed["keys"])
    seeds = {c: sum_.clients[c]._private["seed"] for c in names(7)}
    sum_.ask(names(7)[graph.threshold - 1 :])
    told = sum_.server._told["unmask"]
    assert len(told) == graph.threshold - 1
    for place, client in enumerate(graph.ids):
        shares = {graph.ids.index(h): body[SECRET * place : SECRET * (place + 1)] for h, body in told.items()}
        assert combine(shares, graph.threshold - 1) != seeds[client]
    sum_.ask()
    for place, client in enumerate(graph.ids):  # one more, and they do
        shares = {graph.ids.index(h): body[SECRET * place : SECRET * (place + 1)] for h, body in told.items()}
        assert combine(shares, graph.threshold) == seeds[client]


def test_a_client_tells_one_share_of_each_and_never_the_other() -> None:
    sum_ = begun(7).until("unmask", {"masked": ["site 1", "site 4"]})
    asked = sum_.clients["site 0"]
    held = dict(asked._held)
    assert set(map(len, held.values())) == {SHARES}
    question = sum_.server.question("site 0")
    body = Packet.read(asked.answer(question)).body
    told = {v: body[SECRET * i : SECRET * (i + 1)] for i, v in enumerate(sorted(held))}
    for v, share in told.items():
        seed, key = held[v][:SECRET], held[v][SECRET:]
        assert share == (key if v in ("site 1", "site 4") else seed)
    other = Packet.read(question)
    for ids in (other.ids[:-1], tuple(names(7))):
        with pytest.raises(Refused, match="has been answered, and this is another one"):
            asked.answer(Packet(**vars(other) | {"ids": ids}).written())
    assert asked._held == asked._private == asked._public == {}


def test_a_server_that_tells_clients_different_sets_gets_no_clients_both_secrets() -> None:
    """Whom it calls gone to some and there to others: each holder tells one share, and the threshold is more than half."""
    sum_ = begun(7, share=0.51).until("unmask")
    graph = Neighbourhood(sum_.terms, sum_.server.closed["keys"])
    victim = "site 6"
    seeds, keys = {}, {}
    for i, client in enumerate(names(7)):
        packet = Packet.read(sum_.server.question(client))
        gone = i % 2 == 0 and client != victim
        told = Packet(**vars(packet) | {"ids": tuple(c for c in packet.ids if not gone or c != victim)})
        body = Packet.read(sum_.clients[client].answer(told.written())).body
        place = graph.ids.index(victim)
        (keys if gone else seeds)[graph.ids.index(client)] = body[SECRET * place : SECRET * (place + 1)]
    assert sorted([len(seeds), len(keys)]) == [3, 4]
    assert min(len(seeds), len(keys)) < graph.threshold


def test_sealed_shares_and_public_keys_show_no_secret() -> None:
    sum_ = begun(5).until("unmask")
    wire = b"".join([*sum_.questions.values(), *sum_.answers.values()])
    for client in sum_.clients.values():
        for secret in (*client._private.values(), *client._held.values()):
            assert secret not in wire
            assert secret[:16] not in wire
    assert len(sum_.answers["keys", "site 0"]) > PUBLIC
