"""What is asked of the live PyTorch model: its signature, its answers, its weights.

Enters: a module and a sample. Leaves: `CapturedCall`, and parity cases with the reference's answers. A room of its own
because it is the only stage that runs the user's model.
"""
