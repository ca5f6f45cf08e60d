"""A forward pass in plain torch of every layer kind that the core knows.

It exists to be measured: small, readable, and equal to `transformers` on tiny models of every
family. `numerics` reads what a config says beyond shapes, `model` runs the layers, one module per
kind holds the maths, `dequantize` unpacks what checkpoints hold, `flops` counts.
"""

from moesize.verify.forward.flops import count_flops
from moesize.verify.forward.model import ForwardModel
from moesize.verify.forward.numerics import Numerics

__all__ = ["ForwardModel", "Numerics", "count_flops"]
