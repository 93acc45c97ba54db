"""The maths of one rank's part of a DeepSeek-V3 model. No files, no HTTP, no scheduling; collectives only by a `Group`.

Shape suffixes of tensor names: T tokens of a step, B sequences, Q queries of a sequence, S context slots, D hidden,
H heads of this rank, N nope, R rope, V value, C latent, W = C + R cached width, E experts, K chosen experts, F width.
"""
