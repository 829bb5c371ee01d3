"""`torch2engine doctor`: what is wrong with this machine, why it matters, and the line that mends it.

Enters: a machine, whatever is missing on it. Leaves: findings. Separate because it needs nothing but the standard
library, and imports nothing of what it examines: a child process does.

    examination    the whole: facts, findings, text and JSON
    machine        the facts as values, collected by a child process
    probe          that child process: it imports the packages and asks the driver
    loader         what the dynamic loader says, and what mends it
    packages       checks of Python packages and their versions
    flavours       checks of TensorRT and TensorRT-RTX
    gpus           checks of the driver and the GPU
    surroundings   checks of the environment, the cache and the disk
    doctor_finding one finding as a value
"""
