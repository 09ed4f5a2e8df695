"""Sums of which the server sees nothing but the sum: whole numbers under a cipher whose ciphertexts add up as the numbers do.

The scheme is CKKS (J. H. Cheon, A. Kim, M. Kim, Y. Song, "Homomorphic Encryption for Arithmetic of Approximate Numbers",
ASIACRYPT 2017), that of Microsoft SEAL by the package ``tenseal``. All sites have one secret key, which the server has not. It is
two questions:

1. ``sealed``: each client tells its vector under the key.
2. ``opened``: one client after another gets the sum of the ciphertexts, until one tells what it says.

- :mod:`weft.privacy.ckks.cipher`: the ring, ciphertexts, and the key.
- :mod:`weft.privacy.ckks.cipher_client`, :mod:`weft.privacy.ckks.cipher_server`: both ends; :mod:`weft.privacy.ckks.sealing`: as
  an engine knows them.

**What is opened is exact.** CKKS adds a little noise to what it encrypts, which its security rests on: who is told what a
ciphertext says, noise and all, can compute the key (B. Li, D. Micciancio, "On the Security of Homomorphic Encryption on
Approximate Numbers", EUROCRYPT 2021). So vectors are whole numbers, of a scale at which the noise of all clients together is far
below one half, and whoever opens a sum rounds it before it tells: it tells nothing that does not follow from the vectors. A sum
is therefore that of :mod:`weft.privacy.secagg`, bit for bit.

**What it hides.** A server that plays by the rules learns the sum over those who have sent a vector, and nothing else, whoever
stops when.

**What it does not hide.** Any one site that has the key reads whatever ciphertexts it gets hold of, so that the server and one
site together see every update; with masks (:mod:`weft.privacy.secagg`) it takes most of them. A ciphertext does not tell whose it
is: a server that lies may have anything opened as a sum. An opener sees that the vectors in it are as many as the server says;
that keeps mistakes away, and no liar.
"""
