"""The command line `torch2engine`.

Enters: the arguments of a command. Leaves: text or JSON, and an exit code. Separate because a library never prints, and
`import torch2engine` loads none of this.

    entry       the program: the command line, or the doctor alone where click is missing
    app         every command with its options, as click sees them; the only file that imports click
    outcome     what a command gives back, and the exit codes
    terminal    the only file that writes to the terminal
    arguments   texts like net.py:make and 8x3x64x64 become models, samples and axes
    candidates  a path becomes a deployed module
    commands    deploy, build, check, compare, run, bench and inspect, as functions
    random_weights  advice where answers differ because a model's weights are drawn anew
    cache       the commands on the engine cache
    doctor/     examines the machine; it needs the standard library alone

Public: `entry`. The other files belong to this folder alone.
"""
