"""Blocks: a layer with its activation, normalization and the like, and the networks that are made of them.

sequential.py   SequentialBlock: named modules that run in an order that can be changed
merge.py        Add, Cat: how the two ends of a shortcut come together
sizes.py        which sizes a block can tell without an example input
base.py         BaseBlock: activated, normalized, with a shortcut, several times over
linear.py       LinearBlock
conv.py         Conv1dBlock, Conv2dBlock, Conv3dBlock
residual.py     the style "residual"
plain.py        LayerActivation and the others with fixed names
components.py   MultiLayerPerceptron, ConvolutionalNeuralNetwork
sized.py        SmallMLP, MediumMLP, LargeMLP, XLargeMLP
"""
