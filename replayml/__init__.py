from replayml.module.module import Module
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.layers.containers import LayerList, Sequential, Parallel
from replayml.core.hooks import *
