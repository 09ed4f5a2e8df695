"""Sums of which the server sees nothing but the sum: what goes into them, and how both ends of any protocol look to an engine.

- :mod:`weft.privacy.sums.whole_numbers`, :mod:`weft.privacy.sums.fixed_point`, :mod:`weft.privacy.sums.integer_noise`: what goes
  into a sum.
- :mod:`weft.privacy.sums.sum_terms`: what both ends have agreed on before.
- :mod:`weft.privacy.sums.packets`: the messages, read strictly, and states as bytes.
- :mod:`weft.privacy.sums.protocol`: what an engine asks of a protocol: masks (:mod:`weft.privacy.secagg`) or ciphertexts
  (:mod:`weft.privacy.ckks`).
"""
