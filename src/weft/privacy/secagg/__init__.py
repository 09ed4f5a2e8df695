"""Sums of which the server sees nothing but the sum: integers modulo 2³², hidden under masks that cancel each other.

The protocol is that of K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017
(ePrint 2017/281), between the neighbours of a sparse graph as in J. Bell et al., "Secure single-server aggregation with
(poly)logarithmic overhead", CCS 2020 (ePrint 2020/704). It is four questions, bytes in and bytes out:

1. ``keys``: each client tells two public keys.
2. ``shares``: it gets its neighbours' keys, and tells sealed shares of its two secrets: the seed of its own mask, the key of its
   masks with others.
3. ``masked``: it gets the shares that are meant for it, and tells its vector under all of its masks.
4. ``unmask``: it gets who has come this far, and tells its share of the one secret or of the other, of each neighbour.

- :mod:`weft.privacy.secagg.sum_client`, :mod:`weft.privacy.secagg.sum_server`: both ends; :mod:`weft.privacy.secagg.masking`: as
  an engine knows them.
- :mod:`weft.privacy.secagg.neighbourhood`: the graph, and how many of its clients must be left.
- :mod:`weft.privacy.secagg.pairwise`, :mod:`weft.privacy.secagg.secret_shares`: keys, masks, seals; shares of a secret.

**What it hides.** A server that plays by the rules, together with fewer clients than the threshold in each neighbourhood, learns
the sum over those who sent a masked vector, and nothing else of the others' vectors. The sum itself tells what it tells: noise is
another matter, and so is what sums of several rounds tell together.

**What it does not hide from a server that lies.** A client answers one ``unmask`` question in a round, and tells one of two
shares per neighbour in it; the threshold is more than half of the holders, so telling clients different sets gets the server no
client's both secrets, as long as fewer than 2t - h of the h holders help it. But keys are not signed here: a server that puts its
own in the place of others' reads everything, unless what carries the bytes proves who sent them. It also says who takes part, and
may invent clients. Clients who share a mask notice that they were told of different clients or keys at first; the later sets
are not compared (the consistency check of Bonawitz et al., section 6). And a client that lies can spoil a sum, by its own vector
or by a wrong share; a wrong share is noticed, and then there is no sum.
"""
