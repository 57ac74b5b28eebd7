"""Gecko in TVM's Relax frontend: the specification's equations as launches of TensorIR kernels.

`parameters` is the tree of weights, `quantize` its transformation, `gecko` the functions of a library, `cpu` and
`cuda` the launches they are made of on each kind of machine. State is read and written in place through opaque
kernels only, always through its newest alias (`launch.State`), and every alias is returned.
"""

from gecko_mlc.model.gecko import Gecko
from gecko_mlc.model.quantize import GroupQuantize
from gecko_mlc.model.trace import Build

__all__ = ["Build", "Gecko", "GroupQuantize"]
