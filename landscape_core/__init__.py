"""The geometry of neural-network loss landscapes, every number with its error.

>>> import landscape_core as lc
>>> import torch.nn.functional as F
>>> data = lc.load("digits", subset=(300, 100))
>>> model = lc.MLP(data.input_shape, data.classes, width=16)
>>> history = lc.train(model, data, lc.TrainConfig(epochs=3), progress=False)
>>> objective = lc.Objective(model, F.cross_entropy, data.train)
>>> pairs = lc.top_eigenpairs(lc.Hessian(objective), k=2)
>>> bool(pairs.converged.all())
True
"""

from importlib.metadata import version

import lazy_loader

# The names stand in __init__.pyi, and are imported when first used: a program that draws
# nothing waits for no matplotlib.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = version("landscape-core")
