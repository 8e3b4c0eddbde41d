"""What a module goes through besides its weights: the registry, flows of steps, and modules around them.

    registry   modules and functions by name, in groups
    flows      the steps of a flow; `pipeline` and `loop`, which run them one after another
    packages   `package`: several values, as the positional arguments of the next step
    branches   `parallel`, `diverter`, `warp`, which run them side by side, and `barrier`
    choices    `switch` and `ifs`, which run one of them
    graphs     `graph`, whose steps run as soon as what they need is there
    binding    `bind`: what a step is called with besides the output of the one before it
    threads    how steps run at the same time
    action     `ActionModule`, a module around a flow

Nothing is imported here: each is imported when one of its names is first used.
"""
