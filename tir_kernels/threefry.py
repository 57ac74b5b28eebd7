"""Random numbers by counting: Threefry-2x32-20, on every device the same."""

from tvm.script import tirx as T

from gecko_mlc.tir_kernels.oracles.sampling import PARITY, ROTATIONS


@T.inline
def _rotate_and_mix(x, rotation):
    x[0] = x[0] + x[1]
    x[1] = (x[1] << T.uint32(rotation)) | (x[1] >> T.uint32(32 - rotation))
    x[1] = x[1] ^ x[0]


@T.inline
def _threefry_group(x, keys, group):
    _rotate_and_mix(x, ROTATIONS[group % 2][0])
    _rotate_and_mix(x, ROTATIONS[group % 2][1])
    _rotate_and_mix(x, ROTATIONS[group % 2][2])
    _rotate_and_mix(x, ROTATIONS[group % 2][3])
    x[0] = x[0] + keys[(group + 1) % 3]
    x[1] = x[1] + keys[(group + 2) % 3] + T.uint32(group + 1)


@T.inline
def random_word(x, keys, random, slot):
    """x[0] = threefry(random[slot, 0:2], random[slot, 2]), with buffers x [2] and keys [3]."""
    keys[0] = T.reinterpret("uint32", random[slot, 0])
    keys[1] = T.reinterpret("uint32", random[slot, 1])
    keys[2] = keys[0] ^ keys[1] ^ T.uint32(PARITY)
    x[0] = T.reinterpret("uint32", random[slot, 2]) + keys[0]
    x[1] = keys[1]
    _threefry_group(x, keys, 0)
    _threefry_group(x, keys, 1)
    _threefry_group(x, keys, 2)
    _threefry_group(x, keys, 3)
    _threefry_group(x, keys, 4)
